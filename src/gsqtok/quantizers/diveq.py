"""DiVeQ: quantization as a step of the right length in a random direction near the right one.

Vali et al. 2025, https://arxiv.org/abs/2509.26469.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gsqtok.options import Weight
from gsqtok.quantizers.base import QuantizerOutput, straight_through
from gsqtok.quantizers.codebook import CodebookSize
from gsqtok.quantizers.learnt import Gradient, LearntCodebook
from gsqtok.quantizers.registry import register_quantizer


@register_quantizer("diveq")
@dataclass(eq=False, repr=False, kw_only=True)
class DiVeQ(LearntCodebook):
    """Differentiable vector quantization: no auxiliary loss, the decoder's gradient reaches latents and codewords.

    In training the decoder gets z + |c - z| v / |v| for the nearest codeword c and v ~ N(c - z, ``noise``^2), which
    counts as a constant: a point as far away as c, in almost its direction. In evaluation it gets c.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G, which share the codebook; each position gets G tokens.
        codebook_size: number of codewords V; they start as U(0, 1/V), as in the authors' package.
        noise: standard deviation in each channel.
        orthogonal_weight: as in ``LearntCodebook``.
        nested, nested_full, nested_mixed, filler: as in ``GroupedQuantizer``.
    """

    codebook_size: CodebookSize = 8192
    noise: Weight = 1e-3
    commitment_weight: float = field(init=False, default=0.0)
    gradient: Gradient = field(init=False, default="straight_through")

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.codebook_size
        self.codebook = nn.Parameter(torch.rand(size, self.group_dim) / size)
        self.start_by_kmeans(False)

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        latent, book = self.split(latent), self.book()
        indices = self.assign(latent, book)
        codewords = self.codewords(indices, book)
        if self.training:
            step = codewords - latent
            direction = step.detach() + self.noise * torch.randn_like(step)
            direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True).clamp_min(1e-12)
            value = latent + torch.linalg.vector_norm(step, dim=-1, keepdim=True) * direction
        else:
            value = straight_through(latent, codewords)
        return self.with_orthogonality(QuantizerOutput(value.flatten(-2), indices, latent.new_zeros(())), book)
