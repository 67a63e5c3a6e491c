"""Codewords on a line or a circle: sort them once, then binary search, O((N + V) log V).

A line (d = 1) is ordered by value and a circle (d = 2, cosine) by angle, both in float64. Inner products would not do
at d = 2: among 262,144 codewords neighbours are 2.4e-5 apart, and 1 - cos of that is below float32's step near 1.
"""

import math

import torch
from torch import Tensor


def nearest_on_line(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the codeword of nearest value, int64 (N,), for finite latents (N, 1) and codebook (V, 1)."""
    # Half of each value, since the difference of two of float64's largest would overflow.
    z, c = latents.flatten().double() / 2, codebook.flatten().double() / 2
    values, order = torch.sort(c, stable=True)
    after = torch.searchsorted(values, z)  # the first codeword >= z
    before = torch.searchsorted(values, values[(after - 1).clamp_min(0)])  # first of the equals: the lowest index
    after = after.clamp_max(len(values) - 1)
    return _nearer((z - values[before]).abs(), (z - values[after]).abs(), order[before], order[after])


def nearest_on_circle(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the codeword of nearest angle, int64 (N,), for finite latents (N, 2) and codebook (V, 2).

    A zero row has similarity 0 to everything, as at a right angle.
    """
    z, c = _angle(latents), _angle(codebook)
    zero = ~codebook.any(dim=1)
    # A zero codeword has no angle: infinity puts it behind all others, out of the range that is searched.
    angles, order = torch.sort(c.masked_fill(zero, math.inf), stable=True)
    last = (len(c) - 1 - zero.sum()).clamp_min(0)

    after = torch.searchsorted(angles, z)  # the first codeword >= z
    before = torch.where(after == 0, last, after - 1)
    before = torch.searchsorted(angles, angles[before])  # first of the equals: the lowest index
    after = torch.where(after > last, 0, after)  # the seam: behind the last comes the first
    to_before, to_after = _arc(z, angles[before]), _arc(z, angles[after])
    found = _nearer(to_before, to_after, order[before], order[after])

    first_zero = torch.where(zero, torch.arange(len(c), device=c.device), len(c)).amin()
    beyond = torch.minimum(to_before, to_after) - math.pi / 2
    found = torch.where((beyond > 0) & (first_zero < len(c)), first_zero, found)
    found = torch.where(beyond == 0, torch.minimum(found, first_zero), found)
    return found.masked_fill(~latents.any(dim=1), 0)


def _nearer(to_first: Tensor, to_second: Tensor, first: Tensor, second: Tensor) -> Tensor:
    nearer = torch.where(to_first < to_second, first, second)
    return torch.where(to_first == to_second, torch.minimum(first, second), nearer)


def _angle(rows: Tensor) -> Tensor:
    """Angle of each row in (-pi, pi], float64; -pi, where atan2 puts (-1, -0.0), is pi."""
    angle = torch.atan2(rows[:, 1].double(), rows[:, 0].double())
    return torch.where(angle <= -math.pi, math.pi, angle)


def _arc(a: Tensor, b: Tensor) -> Tensor:
    """Length of the shorter arc between two angles in (-pi, pi]; infinite if b is."""
    arc = (a - b).abs()
    return torch.minimum(arc, (2 * math.pi - arc).abs())
