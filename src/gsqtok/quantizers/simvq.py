"""SimVQ: a frozen codebook through one linear layer. Zhu et al. 2024, https://arxiv.org/abs/2411.02038."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gsqtok.quantizers.codebook import CodebookSize
from gsqtok.quantizers.learnt import LearntCodebook
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.quantizers.vq import VQ, plain_vq


@register_quantizer("simvq")
@dataclass(eq=False, repr=False, kw_only=True)
class SimVQ(LearntCodebook):
    """Codewords are C W: C drawn from N(0, 1 / d) and never trained, W a matrix that all codewords share.

    So every step moves every codeword, also those that no latent chose. A tokenizer is saved with C W as the codebook
    of a plain ``vq``.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G, which share the codebook; each position gets G tokens.
        codebook_size: number of codewords V.
        commitment_weight, gradient, orthogonal_weight: as in ``LearntCodebook``.
        nested, nested_full, nested_mixed, filler: as in ``GroupedQuantizer``.

    Losses: ``codebook``, ``commitment``, as in ``VQ``.
    """

    codebook_size: CodebookSize = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        d = self.group_dim
        self.frozen_codewords = nn.Buffer(torch.randn(self.codebook_size, d) * d**-0.5)
        self.projection = nn.Linear(d, d, bias=False)
        self.start_by_kmeans(False)

    def book(self) -> Tensor:
        """See ``LearntCodebook.book``."""
        return self.frozen_codewords @ self.projection.weight.float().T

    @property
    def unit_rows(self) -> bool | None:
        """See ``LearntCodebook.unit_rows``."""
        return False

    def plain(self) -> VQ:
        """See ``Quantizer.plain``."""
        return plain_vq(self)
