"""Lookup-Free Quantization: MAGVIT-v2, Yu et al. 2024, https://arxiv.org/abs/2310.05737, section 3.1."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gsqtok.options import Weight
from gsqtok.quantizers.binary import BinaryQuantizer
from gsqtok.quantizers.registry import register_quantizer


@register_quantizer("lfq")
@dataclass(eq=False, repr=False, kw_only=True)
class LFQ(BinaryQuantizer):
    """Lookup-Free Quantization: the codewords are {-1, +1}^d, the index is made of the signs (equations 3 and 4).

    Args:
        dim: channels D of the latent, a multiple of ``groups``; D bits per position.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G of at most 62 channels; each position gets G tokens.
        entropy_weight: weight of the entropy loss E[H(q(z))] - ``diversity`` H(E[q(z)]) (equation 5); 0.1 in the paper.
        diversity: weight of the entropy over the batch within it.
        temperature: of the soft assignment q(c | z) ~ exp(-|z - c|^2 / temperature), by which the entropies are taken;
            a bit is then 1 with log-odds 4 z / temperature.
        entropy_bits: bits of which the entropy over the batch is joint; see ``binary_entropies``.
        commitment_weight: weight of the commitment loss, mse(z, sg(codeword)).
        nested, nested_full, nested_mixed, filler: as in ``GroupedQuantizer``.

    Losses: ``sample_entropy``, ``batch_entropy`` (nats per token), ``commitment``.
    """

    commitment_weight: Weight = 0.25

    @property
    def magnitude(self) -> float:
        """See ``BinaryQuantizer.magnitude``."""
        return 1.0

    def project(self, latent: Tensor) -> Tensor:
        """See ``BinaryQuantizer.project``."""
        return latent
