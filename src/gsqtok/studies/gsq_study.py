"""GSQ with what the paper tries and leaves: searches in low precision, sampled codewords, auxiliary losses.

Registered as ``gsq_study`` once `gsqtok.studies` is imported, which loading such a tokenizer needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gsqtok.options import Positive, Weight
from gsqtok.quantizers import GSQ, QuantizerOutput, register_quantizer
from gsqtok.studies import low_precision
from gsqtok.studies.soft_assignment import sample_codewords, softmax_entropies


@register_quantizer("gsq_study")
@dataclass(eq=False, repr=False, kw_only=True)
class StudyGSQ(GSQ):
    """GSQ, changed in what a study asks about.

    Args:
        dim: as in ``GSQ``, and so are the options that are not named here.
        search: ``"exact"``, or ``"float32"`` or ``"bf16"``: the matrix of distances in that precision, as the original
            implementation computes it (bf16 under autocast). Slower.
        sample: draw the index in training from the softmax over the codewords of -|zn - cn|^2 / ``temperature``,
            instead of taking the nearest codeword.
        entropy_weight: weight of an entropy loss, E[H(q(z))] - H(E[q(z)]) with q that softmax; the paper finds that it
            does not help. Training only.
        coding_rate_weight: weight of a loss that spreads the codewords' directions; see ``coding_rate_gap``.
        temperature: of the softmax.

    Losses: those of ``GSQ``, and with their weights ``sample_entropy``, ``batch_entropy`` (nats), ``coding_rate``.
    """

    search: Literal["exact", "float32", "bf16"] = "exact"
    sample: bool = False
    entropy_weight: Weight = 0.0
    coding_rate_weight: Weight = 0.0
    temperature: Positive = 0.01
    codebooks: Literal["shared", "separate"] = field(init=False, default="shared")

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        out = super().quantize(latent)
        if self.entropy_weight and self.training:
            rows = self.normalized(self.split(latent)).reshape(-1, self.group_dim)
            sample, batch = softmax_entropies(rows, self.normalized(self.codebook.float()), self.temperature)
            out.losses |= {"sample_entropy": sample, "batch_entropy": batch}
            out.loss = out.loss + self.entropy_weight * (sample - batch)
        if self.coding_rate_weight:
            out.losses["coding_rate"] = coding_rate_gap(self.codebook.float())
            out.loss = out.loss + self.coding_rate_weight * out.losses["coding_rate"]
        return out

    def assign(self, latent: Tensor, book: Tensor) -> Tensor:
        """See ``GSQ.assign``."""
        rows = self.normalized(latent.detach()).reshape(-1, self.group_dim)
        codebook = self.normalized(book.detach())
        if self.sample and self.training:
            indices = sample_codewords(rows, codebook, self.temperature)
        elif self.search != "exact":
            indices = low_precision.nearest(rows, codebook, torch.bfloat16 if self.search == "bf16" else torch.float32)
        else:
            return super().assign(latent, book)
        return indices.view(latent.shape[:-1])


def coding_rate_gap(codebook: Tensor, distortion: float = 0.5) -> Tensor:
    """How far the total coding rate of the codewords' directions stays below its maximum: (V, d) -> scalar, nats, >= 0.

    R = 1/2 log det(I + d / (V e^2) C^T C) (Yu et al. 2020, arXiv 2006.08558, section 2) of the l2-normalised codewords
    C is largest, d/2 log(1 + 1 / e^2), where no direction is preferred. The loss is the difference, so that less is
    better and 0 is best.
    """
    directions = F.normalize(codebook, dim=-1)
    count, d = directions.shape
    gram = directions.T @ directions * (d / (count * distortion**2))
    rate = torch.linalg.slogdet(torch.eye(d, device=gram.device) + gram).logabsdet / 2
    return d / 2 * math.log1p(1 / distortion**2) - rate
