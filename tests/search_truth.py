"""Inputs whose lengths differ by many orders of magnitude, and the truth about their Euclidean distances."""

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

SCALES = ["outlier", "rows", "entries", "one long channel", "all huge", "all subnormal"]
LARGEST = torch.finfo(torch.float32).max


def mixed_scales(kind: str, n: int, v: int, d: int, exponent: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents (n, d) and codebook (v, d), float32, over scales from 10^-exponent to 10^exponent (at most 38)."""
    g = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).double()

    def scales(*shape: int) -> Tensor:
        return 10.0 ** (exponent * (2 * torch.rand(*shape, generator=g).double() - 1))

    latents, codebook = drawn(n, d), drawn(v, d)
    if kind == "outlier":
        codebook[v // 2] = 10.0**exponent
    elif kind == "rows":
        latents, codebook = latents * scales(n, 1), codebook * scales(v, 1)
    elif kind == "entries":
        latents, codebook = latents * scales(n, d), codebook * scales(v, d)
    elif kind == "one long channel":
        latents[:, 0], codebook[:, 0] = 10.0**exponent, 10.0**exponent
    elif kind == "all huge":
        latents, codebook = latents * 1e38, codebook * 1e38
    elif kind == "all subnormal":
        latents, codebook = latents * 1e-44, codebook * 1e-44
    return tuple(rows.clamp(-LARGEST, LARGEST).float() for rows in (latents, codebook))


def nearest_by_distance(latents: Tensor, codebook: Tensor, k: int = 1) -> Tensor:
    """The k nearest codewords by squared distances in float64, summed term by term, then by index: (n, k)."""
    z, c = latents.double().numpy(), codebook.double().numpy()
    distance = np.zeros((len(z), len(c)))
    for channel in range(z.shape[1]):
        distance += np.square(z[:, channel, None] - c[None, :, channel])
    return torch.from_numpy(distance.argsort(axis=1, kind="stable")[:, :k])


def is_nearest_by_fractions(found: list[int], latents: Tensor, codebook: Tensor) -> bool:
    """Whether no codeword is nearer than the found ones, but for float64's rounding of a distance, without rounding."""
    z, c = ([[Fraction(x) for x in row] for row in rows.tolist()] for rows in (latents, codebook))
    allowed = 1 + Fraction(2 * latents.shape[1] + 4, 2**53)
    for latent, index in zip(z, found, strict=True):
        distance = [sum((a - b) ** 2 for a, b in zip(latent, codeword, strict=True)) for codeword in c]
        if distance[index] > min(distance) * allowed:
            return False
    return True


def rows_of_kind(kind, n, v, d, seed):
    """Latents (n, d) and a codebook (v, d): "uniform", "lattice", or of a kind of ``mixed_scales``."""
    if kind in SCALES:
        return mixed_scales(kind, n, v, d, 6, seed)
    g = torch.Generator().manual_seed(seed)
    latents, codebook = torch.randn(n, d, generator=g), torch.randn(v, d, generator=g)
    if kind == "lattice":  # full of ties and duplicates
        latents, codebook = (2 * latents).round(), codebook.round()
    return latents, codebook
