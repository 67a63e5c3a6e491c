"""Residual finite scalar quantization: Parker et al. 2024, https://arxiv.org/abs/2411.19842, section 3.2."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gsqtok.options import Count
from gsqtok.quantizers.base import GroupedQuantizer, QuantizerOutput
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.quantizers.residual import ResidualQuantizer


@register_quantizer("rfsq")
@dataclass(eq=False, repr=False, kw_only=True)
class ResidualFSQ(ResidualQuantizer):
    """Residual FSQ: every stage rounds to a grid that is L times finer than the one before.

    A channel of L levels is squashed to x = c tanh(z / c), c = 1 + 1 / (L - 1), at which the outer levels are reached.
    Stage s takes what is left times L^s, clamped to [-1, 1], to the nearest of L evenly spaced levels from -1 to 1. The
    index of a stage counts channel 0 fastest.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G; each position gets G times ``stages`` tokens.
        stages: number of stages S.
        levels: levels of each channel of a group, d = D / G of them, each at least 2.
        stage_dropout, gradient: as in ``ResidualQuantizer``.

    No loss: the gradient goes straight through to the squashed latent.

    Raises:
        ValueError: ``dim`` is no multiple of ``groups``, a wrong number of levels, or a level below 2.
    """

    levels: tuple[Count, ...]

    def __post_init__(self) -> None:
        if len(self.levels) * self.groups != self.inner_dim or min(self.levels) < 2:
            raise ValueError(f"levels must name at least 2 for each of dim / groups channels, got {self.levels}")
        super().__post_init__()
        self.codebook_size = math.prod(self.levels)
        if self.codebook_size > 2**62:
            raise ValueError(f"levels give {math.log2(self.codebook_size):.1f} bits, an index has 62; use more groups")

    def _stage(self, stage: int) -> GroupedQuantizer:
        return _Grid(self.inner_dim, groups=self.groups, levels=self.levels, stage=stage)

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        levels = torch.tensor(self.levels, device=latent.device)
        reach = 1 + 1 / (levels - 1)
        return super().quantize((torch.tanh(self.split(latent) / reach) * reach).flatten(-2))


@dataclass(eq=False, repr=False, kw_only=True)
class _Grid(GroupedQuantizer):
    """Evenly spaced levels of each channel, L^stage times finer than from -1 to 1."""

    name = "fsq"
    levels: tuple[Count, ...]
    stage: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.codebook_size = math.prod(self.levels)

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        levels, basis = self._grid(latent)
        scaled = (self.split(latent) * levels.float() ** self.stage).clamp(-1, 1)
        digits = ((levels - 1) * (scaled + 1) / 2 + 0.5).floor().long()
        return QuantizerOutput(latent, (digits * basis).sum(-1), latent.new_zeros(()))

    def lookup(self, indices: Tensor) -> Tensor:
        levels, basis = self._grid(indices)
        digits = indices[..., None] // basis % levels
        return ((digits * (2.0 / (levels - 1)) - 1) * levels.float() ** -self.stage).flatten(-2)

    def _grid(self, like: Tensor) -> tuple[Tensor, Tensor]:
        basis = [math.prod(self.levels[:i]) for i in range(self.group_dim)]
        return torch.tensor(self.levels, device=like.device), torch.tensor(basis, device=like.device)
