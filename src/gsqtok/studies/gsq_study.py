"""GSQ whose search rounds, as in the original implementation.

Registered as ``gsq_study`` once `gsqtok.studies` is imported, which loading such a tokenizer needs. Not for tokenizing:
where distances round to the same value the search takes the first codeword, not the nearest. It exists so that a study
can say what rounding does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from gsqtok.quantizers import GSQ, register_quantizer
from gsqtok.quantizers.base import exact_arithmetic

_BLOCK = 1 << 27  # entries of the matrix of distances held at a time


@register_quantizer("gsq_study")
@dataclass(eq=False, repr=False, kw_only=True)
class StudyGSQ(GSQ):
    """GSQ, changed in its search.

    Args:
        dim: as in ``GSQ``, and so are the options that are not named here.
        search: ``"exact"``, or ``"float32"`` or ``"bf16"``: the matrix of distances in that precision, as the original
            implementation computes it (arXiv 2412.02632 under bf16 autocast). Slower.
    """

    search: Literal["exact", "float32", "bf16"] = "exact"
    codebooks: Literal["shared", "separate"] = field(init=False, default="shared")

    def assign(self, latent: Tensor, book: Tensor) -> Tensor:
        """See ``GSQ.assign``."""
        if self.search == "exact":
            return super().assign(latent, book)
        rows = self.normalized(latent.detach()).reshape(-1, self.group_dim)
        precision = torch.bfloat16 if self.search == "bf16" else torch.float32
        return nearest_rounded(rows, self.normalized(book.detach()), precision).view(latent.shape[:-1])


def nearest_rounded(latents: Tensor, codebook: Tensor, precision: torch.dtype) -> Tensor:
    """argmin over |c|^2 - 2 z.c, the products in ``precision``, the difference in float32; |z|^2 is the same for all.

    Args:
        latents: (N, d), already scaled as the lookup wants them.
        codebook: (V, d), likewise.
        precision: torch.bfloat16 or torch.float32.

    Returns:
        int64 (N,). Ties go to whichever codeword ``argmin`` picks.
    """
    with exact_arithmetic(latents.device):
        codebook = codebook.float()
        squares = codebook.square().sum(1)
        transposed = codebook.to(precision).T
        found = [
            torch.sub(squares, rows.to(precision) @ transposed, alpha=2).argmin(1)
            for rows in torch.split(latents.float(), max(1, _BLOCK // len(codebook)))
        ]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device=latents.device)
