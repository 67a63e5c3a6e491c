"""The shortest vectors of the Leech lattice, built from the binary Golay code.

Source: Conway and Sloane, "Sphere Packings, Lattices and Groups", chapter 4, section 11. Used as a spherical code for
images by Zhao et al., "Spherical Leech Quantization", arXiv 2512.14697.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations

import torch
from torch import Tensor

KISSING_NUMBER = 196_560


def golay_code() -> Tensor:
    """The 4,096 words of the extended binary Golay code: (4096, 24) int64 of 0 and 1.

    The cyclic code of length 23 with generator x^11 + x^10 + x^6 + x^5 + x^4 + x^2 + 1, and a parity bit.
    """
    generator = torch.zeros(12, 23, dtype=torch.int64)
    for shift in range(12):
        generator[shift, [shift + power for power in (0, 2, 4, 5, 6, 10, 11)]] = 1
    messages = torch.arange(4096)[:, None] >> torch.arange(12) & 1
    words = messages @ generator % 2
    return torch.cat([words, words.sum(1, keepdim=True) % 2], dim=1)


@cache
def leech_sphere() -> Tensor:
    """The 196,560 shortest vectors of the Leech lattice, scaled to length 1: (196560, 24) float32.

    In the lattice's usual coordinates, times sqrt(8), they have square length 32 and three shapes: (+-4, +-4, 0 x 22),
    1,104 of them; (+-2 x 8, 0 x 16) on the 759 words of weight 8 with an even number of minus signs, 97,152; and
    (-+3, +-1 x 23), upper signs on the places of any of the 4,096 words, 98,304. Angles between two are at least 60
    degrees, and no other arrangement of as many points in 24 dimensions keeps that distance.
    """
    golay = golay_code()
    pairs = torch.tensor(list(combinations(range(24), 2)))
    signs = torch.tensor([[4, 4], [4, -4], [-4, 4], [-4, -4]])
    fours = torch.zeros(len(pairs), 4, 24, dtype=torch.int64)
    fours.scatter_(2, pairs[:, None, :].expand(-1, 4, -1), signs.expand(len(pairs), -1, -1))

    octads = golay[golay.sum(1) == 8].nonzero()[:, 1].view(-1, 8)
    patterns = torch.arange(256)[:, None] >> torch.arange(8) & 1
    even = 2 - 4 * patterns[patterns.sum(1) % 2 == 0]
    twos = torch.zeros(len(octads), len(even), 24, dtype=torch.int64)
    twos.scatter_(2, octads[:, None, :].expand(-1, len(even), -1), even.expand(len(octads), -1, -1))

    ones = (1 - 2 * golay)[:, None, :] * (1 - 4 * torch.eye(24, dtype=torch.int64))
    vectors = torch.cat([shape.reshape(-1, 24) for shape in (fours, twos, ones)])
    scaled: Tensor = vectors.double() / 32**0.5
    return scaled.float()
