"""Finite Scalar Quantization: Mentzer et al. 2024, https://arxiv.org/abs/2309.15505.

Every channel is squashed to a few levels and rounded; the codebook is the grid of all levels and stores nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gsqtok.options import Count, Positive
from gsqtok.quantizers.base import GroupedQuantizer, QuantizerOutput, straight_through
from gsqtok.quantizers.registry import register_quantizer

EPSILON = 1e-3  # of the paper's listing: keeps the squashed range just inside the outer levels


@register_quantizer("fsq")
@dataclass(eq=False, repr=False, kw_only=True)
class FSQ(GroupedQuantizer):
    """Finite Scalar Quantization, as in the code listing of the paper's appendix A.1.

    bound(z) = tanh(z + shift) h - offset with h = (L - 1)(1 - 1e-3) / 2, offset = 1/2 for an even number of levels L
    (so that L levels fit) else 0, and shift = tan(offset / h). The value is round(bound(z)) / floor(L / 2): in [-1, 1]
    for odd L, [-1, 1 - 2 / L] for even L. The index counts channel 0 fastest.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        groups: number of groups G; each position gets G tokens.
        levels: levels of each channel of a group, d = D / G of them, each at least 2; the paper advises at least 5.
        target_bits: instead of ``levels``: bits per token; equal levels, or two neighbouring ones, that come nearest.

    No loss: the gradient goes straight through the rounding.

    Raises:
        ValueError: ``dim`` is no multiple of ``groups``; not exactly one of ``levels`` and ``target_bits``; a wrong
            number of levels; a level below 2; more than 2^62 values.
    """

    levels: tuple[Count, ...] | None = None
    target_bits: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        d = self.group_dim
        if self.levels is not None and self.target_bits is None:
            chosen = self.levels
        elif self.target_bits is not None and self.levels is None:
            chosen = choose_levels(self.target_bits, d)
        else:
            raise ValueError("give either levels or target_bits")
        if len(chosen) != d:
            raise ValueError(f"levels must name the levels of {d} channels (dim / groups), got {len(chosen)}: {chosen}")
        if min(chosen) < 2:
            raise ValueError(f"every channel needs at least 2 levels, got {chosen}")
        self.codebook_size = math.prod(chosen)
        if self.codebook_size > 2**62:
            raise ValueError(f"levels give {math.log2(self.codebook_size):.1f} bits, an index has 62; use more groups")
        basis = [math.prod(chosen[:i]) for i in range(d)]
        self.register_buffer("level_counts", torch.tensor(chosen), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        bounded = self.bound(self.split(latent))
        half_width = self.level_counts // 2
        indices = ((bounded.round().long() + half_width) * self.basis).sum(-1)
        value = straight_through((bounded / half_width).flatten(-2), self.lookup(indices))
        return QuantizerOutput(value, indices, latent.new_zeros(()))

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.decode``."""
        digits = indices[..., None] // self.basis % self.level_counts
        half_width = self.level_counts // 2
        return ((digits - half_width) / half_width).flatten(-2)

    def bound(self, latent: Tensor) -> Tensor:
        """Squash (..., d) so that rounding gives exactly the levels."""
        half = (self.level_counts - 1) * ((1 - EPSILON) / 2)
        offset = torch.where(self.level_counts % 2 == 1, 0.0, 0.5)
        return torch.tanh(latent + torch.tan(offset / half)) * half - offset


def choose_levels(bits: float, channels: int) -> tuple[int, ...]:
    """Levels for ``channels`` channels that come nearest to ``bits`` bits: all L, or some L + 1 and the rest L.

    Raises:
        ValueError: fewer than one bit a channel, so that some would have a single level.
    """
    if not bits >= channels:
        raise ValueError(f"target_bits must be at least 1 a channel: {channels} channels, got {bits}")
    least = math.floor(2 ** (bits / channels) + 1e-9)
    choices = [(least + 1,) * more + (least,) * (channels - more) for more in range(channels + 1)]
    return min(choices, key=lambda levels: abs(sum(map(math.log2, levels)) - bits))
