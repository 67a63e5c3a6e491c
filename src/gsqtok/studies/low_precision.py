"""The search as the original implementation computes it: a matrix of distances in low precision.

Not for tokenizing: where distances round to the same value it takes the first codeword, not the nearest. It exists so
that a study can say what rounding does (arXiv 2412.02632 computes it under bf16 autocast).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsqtok.quantizers.base import exact_arithmetic

_BLOCK = 1 << 27  # entries of the matrix held at a time


def nearest(latents: Tensor, codebook: Tensor, precision: torch.dtype) -> Tensor:
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
