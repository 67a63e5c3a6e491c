"""Spherical codes that are fixed, not learnt, so that a learnt sphere can be compared to them at equal bits.

The Leech lattice's: Spherical Leech Quantization, Zhao et al., CVPR 2026, https://arxiv.org/abs/2512.14697.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gsqtok.quantizers.base import LATER, GroupedQuantizer, QuantizerOutput
from gsqtok.quantizers.codebook import CodebookSize, nearest_codewords, take_codewords
from gsqtok.quantizers.learnt import Gradient, through
from gsqtok.quantizers.leech import KISSING_NUMBER, leech_sphere
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.quantizers.sphere import fibonacci_sphere, random_sphere
from gsqtok.search import normalize


@dataclass(eq=False, repr=False, kw_only=True)
class FixedSphere(GroupedQuantizer):
    """A latent of each group goes to the nearest direction of a fixed codebook on the unit sphere.

    There is no loss: the straight-through gradient passes through the l2-normalised latent, and no codebook is trained.
    """

    gradient: Gradient = field(default="straight_through", metadata=LATER)
    least_group_dim = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        # Saved, though it can be made again: generators and rounding change between versions.
        where = torch.empty(0).device  # on the meta device nothing is computed
        shape = (self.codebook_size, self.group_dim)
        self.codebook = nn.Buffer(torch.empty(shape) if where.type == "meta" else self.points().to(where, copy=True))

    @abstractmethod
    def points(self) -> Tensor:
        """The codebook: (codebook_size, d) float32, rows of length 1."""

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        latent = normalize(self.split(latent))
        indices = nearest_codewords(latent, self.codebook, "cosine")
        value = through(latent, take_codewords(self.codebook, indices), self.gradient).flatten(-2)
        return QuantizerOutput(value, indices, latent.new_zeros(()))

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.decode``."""
        return take_codewords(self.codebook, indices).flatten(-2)


@register_quantizer("leech")
@dataclass(eq=False, repr=False, kw_only=True)
class Leech(FixedSphere):
    """Spherical Leech Quantization: the 196,560 shortest vectors of the Leech lattice, 17.58 bits a token.

    Args:
        dim: channels D of the latent, 24 times ``groups``.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G; each position gets G tokens.
        gradient: ``"straight_through"`` or ``"rotation"``, see `rotation_trick`.
        nested, nested_full, nested_mixed, filler: as in ``GroupedQuantizer``.

    Raises:
        ValueError: ``dim`` is not 24 times ``groups``.
    """

    codebook_size: int = field(init=False, default=KISSING_NUMBER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_dim != 24:
            which = "dim" if self.codebook_dim is None else "codebook_dim"
            wanted = f"{which} must be {24 * self.groups}, got {self.inner_dim}"
            raise ValueError(f"the Leech lattice has 24 channels a group: {wanted}")

    def points(self) -> Tensor:
        """See ``FixedSphere.points``."""
        return leech_sphere()


@register_quantizer("random_sphere")
@dataclass(eq=False, repr=False, kw_only=True)
class RandomSphere(FixedSphere):
    """Codewords drawn uniformly on the sphere once: GSQ's start, never trained.

    Args:
        dim: channels D of the latent, a multiple of ``groups``, at least 2 a group.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G; each position gets G tokens.
        codebook_size: number of codewords V.
        seed: of the draw.
        gradient: ``"straight_through"`` or ``"rotation"``, see `rotation_trick`.
        nested, nested_full, nested_mixed, filler: as in ``GroupedQuantizer``.
    """

    codebook_size: CodebookSize = 8192
    seed: int = 0

    def points(self) -> Tensor:
        """See ``FixedSphere.points``."""
        return random_sphere(self.group_dim, self.codebook_size, self.seed)


@register_quantizer("fibonacci_sphere")
@dataclass(eq=False, repr=False, kw_only=True)
class FibonacciSphere(FixedSphere):
    """Codewords on a Fibonacci lattice of the sphere; see ``sphere.fibonacci_sphere``.

    Args:
        dim: channels D of the latent, a multiple of ``groups``, at least 2 a group.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G; each position gets G tokens.
        codebook_size: number of codewords V.
        gradient: ``"straight_through"`` or ``"rotation"``, see `rotation_trick`.
        nested, nested_full, nested_mixed, filler: as in ``GroupedQuantizer``.
    """

    codebook_size: CodebookSize = 8192

    def points(self) -> Tensor:
        """See ``FixedSphere.points``."""
        return fibonacci_sphere(self.group_dim, self.codebook_size)
