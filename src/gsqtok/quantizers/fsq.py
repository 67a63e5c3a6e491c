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

MAX_LEVELS = 2**20  # that tanh in float32 reaches, each of them
EPSILON = 1e-3  # of the paper's listing: keeps the squashed range just inside the outer levels


@register_quantizer("fsq")
@dataclass(eq=False, repr=False, kw_only=True)
class FSQ(GroupedQuantizer):
    """Finite Scalar Quantization, as in the code listing of the paper's appendix A.1.

    bound(z) = tanh(z + shift) h - offset with h = (L - 1)(1 - 1e-3) / 2, offset = 1/2 for an even number of levels L
    (so that L levels fit) else 0, and shift = tan(offset / h). The value is round(bound(z)) / floor(L / 2): in [-1, 1]
    for odd L, [-1, 1 - 2 / L] for even L. The index counts channel 0 fastest. Two exceptions: L = 2 has no shift, since
    the listing's leaves latents of N(0, 1) a third of a bit; beyond 501 levels 1e-3 shrinks to 1 / (2 L - 2), or the
    outermost levels could not be reached.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G; each position gets G tokens.
        levels: levels of each channel of a group, d = D / G of them, each at least 2; the paper advises at least 5.
        target_bits: instead of ``levels``: bits per token; equal levels, or two neighbouring ones, that come nearest.
        nested, nested_full, nested_mixed, filler: as in ``GroupedQuantizer``.

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
        if min(chosen) < 2 or max(chosen) > MAX_LEVELS:
            raise ValueError(f"every channel needs from 2 to {MAX_LEVELS} levels, got {chosen}")
        self.codebook_size = math.prod(chosen)
        if self.codebook_size > 2**62:
            raise ValueError(f"levels give {math.log2(self.codebook_size):.1f} bits, an index has 62; use more groups")
        self.level_counts = chosen

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        bounded = self.bound(self.split(latent))
        counts, basis = self._grid(latent)
        half_width = counts // 2
        indices = ((bounded.round().long() + half_width) * basis).sum(-1)
        value = straight_through((bounded / half_width).flatten(-2), self.lookup(indices))
        return QuantizerOutput(value, indices, latent.new_zeros(()))

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.decode``."""
        counts, basis = self._grid(indices)
        digits = indices[..., None] // basis % counts
        half_width = counts // 2
        return ((digits - half_width) / half_width).flatten(-2)

    def bound(self, latent: Tensor) -> Tensor:
        """Squash (..., d) so that rounding gives exactly the levels."""
        counts, _ = self._grid(latent)
        half = ((counts - 1) - torch.clamp((counts - 1) * EPSILON, max=0.5)) / 2
        offset = torch.where(counts % 2 == 1, 0.0, 0.5)
        shift = torch.where(counts == 2, 0.0, torch.tan(offset / half))
        return torch.tanh(latent + shift) * half - offset

    def _grid(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of each channel of a group, and what a level of it counts for in the index; on the tensor's device."""
        basis = [math.prod(self.level_counts[:i]) for i in range(self.group_dim)]
        return torch.tensor(self.level_counts, device=like.device), torch.tensor(basis, device=like.device)


def choose_levels(bits: float, channels: int) -> tuple[int, ...]:
    """Levels for ``channels`` channels that come nearest to ``bits`` bits: all L, or some L + 1 and the rest L.

    Raises:
        ValueError: fewer than one bit a channel, so that some would have a single level; more than 62 in all.
    """
    if not channels <= bits <= 62:
        raise ValueError(f"target_bits must be from 1 a channel to 62, an index's: {channels} channels, got {bits}")
    least = math.floor(2 ** (bits / channels) + 1e-9)
    choices = [(least + 1,) * more + (least,) * (channels - more) for more in range(channels + 1)]
    return min(choices, key=lambda levels: abs(sum(map(math.log2, levels)) - bits))
