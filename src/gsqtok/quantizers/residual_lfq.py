"""Residual lookup-free quantization: LFQ (Yu et al. 2024, arXiv 2310.05737) in the stages of SoundStream's residual."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gsqtok.options import Positive, Weight
from gsqtok.quantizers.base import GroupedQuantizer
from gsqtok.quantizers.binary import EntropyBits
from gsqtok.quantizers.lfq import LFQ
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.quantizers.residual import ResidualQuantizer


@register_quantizer("rlfq")
@dataclass(eq=False, repr=False, kw_only=True)
class ResidualLFQ(ResidualQuantizer):
    """Residual LFQ: stage s adds {-2^-s, +2^-s} to each channel, by the sign of what is left.

    Args:
        dim: channels D of the latent, a multiple of ``groups``; D bits a stage.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G of at most 62 channels; each position gets G times ``stages`` tokens.
        stages: number of stages S.
        stage_dropout, gradient: as in ``ResidualQuantizer``.
        entropy_weight, diversity, temperature, entropy_bits, commitment_weight: as in ``LFQ``, of each stage.

    Losses: those of ``LFQ``, summed over stages.
    """

    entropy_weight: Weight = 0.1
    diversity: Weight = 1.0
    temperature: Positive = 1.0
    entropy_bits: EntropyBits = 9
    commitment_weight: Weight = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        self.codebook_size = 2**self.group_dim

    def _stage(self, stage: int) -> GroupedQuantizer:
        names = ("groups", "entropy_weight", "diversity", "temperature", "entropy_bits", "commitment_weight")
        return _ScaledLFQ(self.inner_dim, stage=stage, **{name: getattr(self, name) for name in names})


@dataclass(eq=False, repr=False, kw_only=True)
class _ScaledLFQ(LFQ):
    """LFQ whose codes are 2^-stage from 0."""

    stage: int

    @property
    def magnitude(self) -> float:
        """See ``BinaryQuantizer.magnitude``."""
        return 2.0**-self.stage

    def project(self, latent: Tensor) -> Tensor:
        """See ``BinaryQuantizer.project``."""
        return latent
