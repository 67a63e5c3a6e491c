"""Codewords on a line or a circle: sort them once, then binary search, O((N + V) log V).

A line (d = 1) is ordered by value and a circle (d = 2, cosine) by angle, both in float64. Inner products would not do
at d = 2: among 262,144 codewords neighbours are 2.4e-5 apart, and 1 - cos of that is below float32's step near 1.
"""

import math

import torch
from torch import Tensor

from gsqtok.search.codebook import Codebook
from gsqtok.search.rows import TINY


def nearest_on_line(latents: Tensor, codebook: Codebook) -> Tensor:
    """Index of the codeword of nearest value, int64 (N,), for finite latents (N, 1) and codebook (V, 1)."""
    z, (values, lowest) = _halves(latents), codebook.prepared(_by_value)
    after = torch.searchsorted(values, z)  # the first codeword >= z
    before, after = (after - 1).clamp_min(0), after.clamp_max(len(values) - 1)
    return _nearer((z - values[before]).abs(), (z - values[after]).abs(), lowest[before], lowest[after])


def _halves(rows: Tensor) -> Tensor:
    """Half of each value, since the difference of two of float64's largest would overflow."""
    return rows.flatten().double() / 2


def _by_value(codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Half of each value of (V, 1) in order, and the lowest index of a codeword of that value."""
    values, order = torch.sort(_halves(codebook), stable=True)
    return values, order[torch.searchsorted(values, values)]


def nearest_on_circle(latents: Tensor, codebook: Codebook) -> Tensor:
    """Index of the codeword of nearest angle, int64 (N,), for finite latents (N, 2) and codebook (V, 2).

    A zero row has similarity 0 to everything, as at a right angle.
    """
    z, (c, turns, lowest, last, first_zero) = _scaled(latents), codebook.prepared(_by_angle)
    after = torch.searchsorted(turns, _turn(z[:, 0], z[:, 1]))  # the first codeword that is not before z
    before = lowest[torch.where(after == 0, last, after - 1)]
    after = lowest[torch.where(after > last, 0, after)]  # the seam: behind the last comes the first
    found = _nearer(_arc(z, c[before]), _arc(z, c[after]), before, after)
    similarity = _product(z, c[found])
    found = torch.where((similarity < 0) & (first_zero < len(c)), first_zero, found)
    found = torch.where(similarity == 0, torch.minimum(found, first_zero), found)
    return found.masked_fill(~z.any(dim=1), 0)


def _by_angle(codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The codewords (V, 2) scaled; their turns in order, and the lowest index of a codeword with that turn.

    A zero codeword has no angle: infinity puts it behind all others, out of the range that is searched. Hence also the
    place of the last that is not zero, and the first index of a zero one, V if there is none.
    """
    c = _scaled(codebook)
    turns, order = torch.sort(_turn(c[:, 0], c[:, 1]).nan_to_num(nan=math.inf), stable=True)
    count = torch.searchsorted(turns, torch.full_like(turns[:1], math.inf))
    first_zero = torch.where(count < len(c), order[count.clamp_max(len(c) - 1)], len(c))
    return c, turns, order[torch.searchsorted(turns, turns)], (count - 1).clamp_min(0), first_zero


def _nearer(to_first: Tensor, to_second: Tensor, first: Tensor, second: Tensor) -> Tensor:
    nearer = torch.where(to_first < to_second, first, second)
    return torch.where(to_first == to_second, torch.minimum(first, second), nearer)


def _scaled(rows: Tensor) -> Tensor:
    """Rows as float64 with a largest entry of 1, or all zero."""
    rows = rows.double()
    return rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(TINY)


def _turn(x: Tensor, y: Tensor) -> Tensor:
    """A number in (-2, 2] that grows with the angle of (x, y) from -pi to pi; NaN for (0, 0).

    Made of exactly rounded operations alone, so equal points get equal numbers; atan2 differs in its last digit between
    the vector part of a loop and the rest.
    """
    slope = y / (x.abs() + y.abs())
    turn = torch.where(x >= 0, slope, torch.where(y >= 0, 2 - slope, -2 - slope))
    return torch.where(turn <= -2, 2.0, turn)


def _arc(a: Tensor, b: Tensor) -> Tensor:
    """A number in [0, 2] that grows with the angle between rows of a and rows of b; NaN if one is zero."""
    cross = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs()
    return _turn(_product(a, b), cross)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1]
