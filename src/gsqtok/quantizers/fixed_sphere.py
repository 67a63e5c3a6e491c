"""Spherical codes that are fixed, not learnt, so that a learnt sphere can be compared to them at equal bits.

The Leech lattice's: Spherical Leech Quantization, Zhao et al., CVPR 2026, https://arxiv.org/abs/2512.14697.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from gsqtok.quantizers.base import Quantizer, QuantizerOutput, group_size, not_below, straight_through
from gsqtok.quantizers.codebook import nearest_codewords, take_codewords
from gsqtok.quantizers.leech import KISSING_NUMBER, leech_sphere
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.quantizers.sphere import fibonacci_sphere, random_sphere


class FixedSphere(Quantizer):
    """A latent of each group goes to the nearest direction of a fixed codebook on the unit sphere.

    There is no loss: the straight-through gradient passes through the l2-normalised latent, and no codebook is trained.
    """

    codebook: Tensor

    def __init__(self, dim: int, groups: int, codebook: Tensor, persistent: bool) -> None:
        super().__init__()
        self.dim = dim
        self.groups = self.tokens_per_position = groups
        self.codebook_size = len(codebook)
        self.register_buffer("codebook", codebook.clone(), persistent=persistent)

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        latent = F.normalize(latent.unflatten(-1, (self.groups, -1)), dim=-1)
        indices = nearest_codewords(latent, self.codebook, "cosine")
        value = straight_through(latent.flatten(-2), self.lookup(indices))
        return QuantizerOutput(value, indices, latent.new_zeros(()))

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.decode``."""
        return take_codewords(self.codebook, indices).flatten(-2)


@register_quantizer("leech")
class Leech(FixedSphere):
    """Spherical Leech Quantization: the 196,560 shortest vectors of the Leech lattice, 17.58 bits a token.

    Args:
        dim: channels D of the latent, 24 times ``groups``.
        groups: number of groups G; each position gets G tokens.

    Raises:
        ValueError: ``dim`` is not 24 times ``groups``.
    """

    def __init__(self, dim: int, groups: int = 1) -> None:
        if group_size(dim, groups) != 24:
            raise ValueError(f"the Leech lattice has 24 channels a group: dim must be {24 * groups}, got {dim}")
        super().__init__(dim, groups, leech_sphere(), persistent=False)
        assert self.codebook_size == KISSING_NUMBER


@register_quantizer("random_sphere")
class RandomSphere(FixedSphere):
    """Codewords drawn uniformly on the sphere once: GSQ's start, never trained.

    Args:
        dim: channels D of the latent, a multiple of ``groups``, at least 2 a group.
        groups: number of groups G; each position gets G tokens.
        codebook_size: number of codewords V.
        seed: of the draw. The codebook is saved all the same, since generators change between versions.

    Raises:
        ValueError: ``dim`` is no multiple of ``groups``, or a value is out of its range.
    """

    def __init__(self, dim: int, groups: int = 1, codebook_size: int = 8192, seed: int = 0) -> None:
        points = random_sphere(_sphere_channels(dim, groups), int(not_below("codebook_size", codebook_size, 2)), seed)
        super().__init__(dim, groups, points, persistent=True)
        self.seed = seed


@register_quantizer("fibonacci_sphere")
class FibonacciSphere(FixedSphere):
    """Codewords on a Fibonacci lattice of the sphere; see ``sphere.fibonacci_sphere``.

    Args:
        dim: channels D of the latent, a multiple of ``groups``, at least 2 a group.
        groups: number of groups G; each position gets G tokens.
        codebook_size: number of codewords V.

    Raises:
        ValueError: ``dim`` is no multiple of ``groups``, or a value is out of its range.
    """

    def __init__(self, dim: int, groups: int = 1, codebook_size: int = 8192) -> None:
        points = fibonacci_sphere(_sphere_channels(dim, groups), int(not_below("codebook_size", codebook_size, 2)))
        super().__init__(dim, groups, points, persistent=False)


def _sphere_channels(dim: int, groups: int) -> int:
    if group_size(dim, groups) < 2:
        raise ValueError(f"a sphere needs groups of at least 2 channels, got dim = {dim}, groups = {groups}")
    return dim // groups
