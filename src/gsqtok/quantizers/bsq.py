"""Binary Spherical Quantization: Zhao et al. 2024, https://arxiv.org/abs/2406.07548, section 3."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gsqtok.options import Weight
from gsqtok.quantizers.binary import BinaryQuantizer
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.search import normalize


@register_quantizer("bsq")
@dataclass(eq=False, repr=False, kw_only=True)
class BSQ(BinaryQuantizer):
    """Binary Spherical Quantization: latents on the unit sphere, codewords at corners {-1, +1}^d / sqrt(d) of a cube.

    The largest error is bounded: |u - codeword|^2 < 2 - 2 / sqrt(d) (section 3).

    Args:
        dim: channels D of the latent, a multiple of ``groups``; D bits per position.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G of at most 62 channels, each on a sphere of its own; each position gets G tokens.
        entropy_weight: weight of the entropy loss E[H(q(u))] - ``diversity`` H(E[q(u)]).
        diversity: weight of the entropy over the batch within it.
        temperature: of the soft assignment q(c | u) ~ exp(-|u - c|^2 / temperature), by which the entropies are taken;
            a bit is then 1 with log-odds 4 u / (temperature sqrt(d)), in closed form.
        entropy_bits: bits of which the entropy over the batch is joint; see ``binary_entropies``. With 1, the paper's
            approximation by independent bits.
        commitment_weight: weight of the commitment loss, mse(u, sg(codeword)); the paper needs none.
        nested, nested_full, nested_mixed, filler: as in ``GroupedQuantizer``.

    Losses: ``sample_entropy``, ``batch_entropy`` (nats per token), ``commitment`` if weighted.
    """

    commitment_weight: Weight = 0.0

    @property
    def magnitude(self) -> float:
        """See ``BinaryQuantizer.magnitude``."""
        return 1 / math.sqrt(self.group_dim)

    def project(self, latent: Tensor) -> Tensor:
        """See ``BinaryQuantizer.project``."""
        return normalize(latent)
