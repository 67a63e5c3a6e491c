"""Lookup-Free Quantization: MAGVIT-v2, Yu et al. 2024, https://arxiv.org/abs/2310.05737, section 3.1."""

from __future__ import annotations

from torch import Tensor

from gsqtok.quantizers.binary import BinaryQuantizer
from gsqtok.quantizers.registry import register_quantizer


@register_quantizer("lfq")
class LFQ(BinaryQuantizer):
    """Lookup-Free Quantization: the codes are {-1, +1}^d, the index is made of the signs (equations 3 and 4).

    Args:
        dim: channels D of the latent, a multiple of ``groups``; D bits per position.
        groups: number of groups G of at most 62 channels; each position gets G tokens.
        entropy_weight: weight of the entropy loss E[H(q(z))] - ``diversity`` H(E[q(z)]) (equation 5); 0.1 in the paper.
        diversity: weight of the entropy over the batch within it.
        temperature: of the soft assignment q(c | z) ~ exp(-|z - c|^2 / temperature), by which the entropies are taken;
            a bit is then 1 with log-odds 4 z / temperature.
        entropy_bits: bits of which the entropy over the batch is joint; see ``binary_entropies``.
        commitment_weight: weight of the commitment loss, mse(z, sg(code)).

    Losses: ``sample_entropy``, ``batch_entropy`` (nats per token), ``commitment``.

    Raises:
        ValueError: ``dim`` is no multiple of ``groups``, or a value is out of its range.
    """

    magnitude = 1.0

    def __init__(
        self,
        dim: int,
        groups: int = 1,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        temperature: float = 1.0,
        entropy_bits: int = 9,
        commitment_weight: float = 0.25,
    ) -> None:
        super().__init__(dim, groups, entropy_weight, diversity, temperature, entropy_bits, commitment_weight)

    def project(self, latent: Tensor) -> Tensor:
        """See ``BinaryQuantizer.project``."""
        return latent

    def bit_logits(self, projected: Tensor) -> Tensor:
        """See ``BinaryQuantizer.bit_logits``."""
        return 4 / self.temperature * projected
