"""Spherical codes: what a random one can do, what none can beat, and fixed ones.

The spherical error is the squared distance of unit vectors, as in the GSQ loss: |a - b|^2 = 2 - 2 cos(angle).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

STEPS = 60_001  # of the integrals over the angle: relative error below 1e-6
CPU: Any = {"device": "cpu", "dtype": torch.float64}  # whatever the default device: these numbers are looked at


def random_code_error(d: int, codewords: int) -> float:
    """Expected spherical error from a uniform point on S^(d-1) to the nearest of V uniform points.

    The nearest is further than the angle t with probability (1 - F(t))^V, F(t) being the share of the sphere within a
    cap of that angle (Li 2011, "Concise formulas for the area and volume of a hyperspherical cap"), so the expectation
    of 2 - 2 cos t is the integral of 2 sin(t) (1 - F(t))^V from 0 to pi.

    Args:
        d: channels, at least 2.
        codewords: V, at least 1.
    """
    angle, share = _cap_shares(d)
    tail = (float(codewords) * torch.log1p(-share)).exp()  # stays exact where F is far below 1 / V
    return torch.trapezoid(2 * angle.sin() * tail, angle).item()


def sphere_bound(d: int, codewords: int) -> float:
    """Least expected spherical error from a uniform point on S^(d-1) to the nearest of any V points.

    Each codeword's cell has a share s_j of the sphere, and among all cells of a share the cap about the codeword has
    the least error. That error is convex in the share, so V caps of share 1 / V are best; they do not tile the sphere,
    so this is a bound and not a code (the spherical form of the sphere bound of Gersho 1979, "Asymptotically optimal
    block quantization").

    Args:
        d: channels, at least 2.
        codewords: V, at least 1.
    """
    angle, share = _cap_shares(d)
    # Given that the nearest codeword is within the cap: the integral of 2 sin(t) (1 - V F(t)) where that is positive.
    tail = (1 - float(codewords) * share).clamp_min(0)
    return torch.trapezoid(2 * angle.sin() * tail, angle).item()


def residual_stages(d: int, codewords: int, stages: int) -> list[tuple[float, float]]:
    """Radius of the codewords, and expected squared error, of each stage of a random spherical residual code (RSQ).

    The first stage has radius 1 and leaves the spherical error e. A later stage finds a direction of mean cosine c to
    what is left, r, whose length its codewords do not know: their best radius is E|r| c, and takes radius^2 off the
    error. (E|r|)^2 / E(r^2) is taken from the first stage for all, though lengths spread from stage to stage: at
    V = 4,096 the errors are right within 1 % at d = 32, but at d = 8 too small by 5 % after three stages and 4 times
    too small after six.
    """
    angle, share = _cap_shares(d)
    tail = (float(codewords) * torch.log1p(-share)).exp()
    error = random_code_error(d, codewords)
    mean_distance = torch.trapezoid((angle / 2).cos() * tail, angle).item()
    cosine, evenness = max(0.0, 1 - error / 2), mean_distance**2 / error
    found = [(1.0, error)]
    for _ in range(stages - 1):
        radius = cosine * math.sqrt(evenness * found[-1][1])
        found.append((radius, found[-1][1] - radius**2))
    return found


def bsq_error(d: int) -> float:
    """Expected spherical error from a uniform point on S^(d-1) to its corner of the cube {-1, +1}^d / sqrt(d).

    2 - 2 E|u|_1 / sqrt(d), with E|u_i| = gamma(d / 2) / (sqrt(pi) gamma((d + 1) / 2)).
    """
    mean = math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)
    return 2 - 2 * math.sqrt(d) * mean


def random_sphere(d: int, codewords: int, seed: int = 0) -> Tensor:
    """V points drawn uniformly on S^(d-1), (V, d) float32, the same for the same seed."""
    points = torch.randn(codewords, d, generator=torch.Generator().manual_seed(seed), **CPU)
    return torch.nn.functional.normalize(points, dim=-1).float()


def fibonacci_sphere(d: int, codewords: int) -> Tensor:
    """A Fibonacci lattice of V points on S^(d-1), (V, d) float32.

    At d = 3 the golden spiral (Gonzalez 2010, "Measurement of areas on a sphere using Fibonacci and latitude-longitude
    lattices"). In general the points of a cube, (j + 1/2) / V in the first coordinate and j times powers of the
    generalised golden ratio (Roberts 2018, the root of x^(m + 1) = x + 1 for m coordinates) in the others, brought to
    the sphere by the inverse distribution functions of its angles, so that equal volumes stay equal.

    Args:
        d: channels, at least 2.
        codewords: V.
    """
    j = torch.arange(codewords, **CPU)
    others = d - 2
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (others + 1))
    uniform = [(j + 0.5) / codewords] + [(j * ratio ** -(k + 1)) % 1 for k in range(others)]
    columns, radius = [], torch.ones_like(j)
    for k, u in enumerate(uniform[:-1]):
        angle, share = _cap_shares(d - k)
        at = torch.searchsorted(share, u).clamp(1, len(share) - 1)
        step = (share[at] - share[at - 1]).clamp_min(1e-300)
        polar = angle[at - 1] + (u - share[at - 1]) / step * (angle[at] - angle[at - 1])
        columns.append(radius * polar.cos())
        radius = radius * polar.sin()
    azimuth = 2 * math.pi * uniform[-1]
    points = torch.stack([*columns, radius * azimuth.cos(), radius * azimuth.sin()], dim=-1)
    return torch.nn.functional.normalize(points, dim=-1).float()


def _cap_shares(d: int) -> tuple[Tensor, Tensor]:
    """Angles from 0 to pi, and the share of S^(d-1) within a cap of each: both (STEPS,) float64.

    The share is the integral of sin^(d-2), normalised. Angles are dense near 0, where a large code's errors lie.
    """
    if d < 2:
        raise ValueError(f"a sphere needs at least 2 channels, got {d}")
    half = torch.logspace(-30, 0, STEPS // 2, **CPU) * (math.pi / 2)
    angle = torch.cat([torch.zeros(1, **CPU), half, math.pi - half[:-1].flip(0)])
    weight = angle.sin().clamp_min(0) ** (d - 2)
    share = torch.cumulative_trapezoid(weight, angle)
    share = torch.cat([torch.zeros(1, **CPU), share])
    return angle, share / share[-1]
