"""The operations of a prior: in floating point, and in numbers whose sums are exact.

Floating-point sums depend on their order, so the same network gives other numbers with other threads, batches and
machines, and a range coder that is off by one bit decodes noise. `FixedPoint` rounds what is multiplied and added to
multiples of powers of two, few enough bits that float64 holds every product and every partial sum exactly: the order no
longer matters. What remains are single additions, multiplications, divisions and square roots, which IEEE 754 rounds
alike everywhere, and a table of the exponential function made with decimal numbers. (After Ballé et al. 2019, "Integer
networks for data compression with latent-variable models", where integers serve the same purpose.)
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

NORM_EPS = 2.0**-20


class Arithmetic(Protocol):
    """What the modules of a prior compute with."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """(..., K) and (N, K) -> (..., N)."""

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root mean square normalisation over the last dimension."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        """Rotary positions: x (..., n, d), angles (n, d / 2)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """Softmax attention of (..., n, d) to (..., m, d), m >= n; causal: query i sees the first m - n + i + 1."""

    def activation(self, x: Tensor) -> Tensor:
        """The square of what is positive (So et al. 2021, arXiv 2109.08668)."""

    def weight(self, x: Tensor) -> Tensor:
        """A result as the ``weight`` of `linear`."""


class FloatingPoint:
    """What training and sampling compute with, in the precision of the weights or under autocast."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return F.linear(x, weight)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), NORM_EPS).to(x.dtype)

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return _rotated(x, angles.cos().to(x.dtype), angles.sin().to(x.dtype))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """See `Arithmetic`."""
        n, m = q.shape[-2], k.shape[-2]
        if causal and 1 < n < m:
            mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
            return F.scaled_dot_product_attention(q, k, v, mask)
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal and n > 1)

    def activation(self, x: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return F.relu(x).square()

    def weight(self, x: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return x


class FixedPoint:
    """The same in float64, exact in every sum; see the top of this module.

    Bits: inputs of a product are multiples of 2^-12 below 2^12, weights multiples of 2^-14 below 4, and a sum has at
    most 4096 terms: 24 + 16 + 12 bits of the 53. Normalisation squares multiples of 2^-12 below 2^9, queries and keys
    are below 2^6.
    """

    WIDEST = 4096  # terms of a sum

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `Arithmetic`; the weight has been rounded."""
        if x.shape[-1] > self.WIDEST:
            raise ValueError(f"exact sums have {self.WIDEST} terms at most, got {x.shape[-1]}: use a narrower prior")
        return _rounded(F.linear(_rounded(x, 12, 12), weight), 12, 12)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `Arithmetic`."""
        x = _rounded(x, 12, 9)
        mean = (x * x).sum(-1, keepdim=True) / x.shape[-1]
        return _rounded(x / (mean + NORM_EPS).sqrt() * weight, 12, 12)

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        """See `Arithmetic`."""
        angles = angles.double()
        return _rounded(_rotated(x, _rounded(angles.cos(), 14, 0), _rounded(angles.sin(), 14, 0)), 12, 6)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """See `Arithmetic`."""
        n, m, width = q.shape[-2], k.shape[-2], q.shape[-1]
        scores = _rounded(q, 12, 6) @ _rounded(k, 12, 6).transpose(-1, -2)
        scores = (scores * (width**-0.5 * 256)).round()  # multiples of 2^-8
        hidden = None
        if causal and n > 1:
            hidden = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(m - n + 1)
            scores = scores.masked_fill(hidden, -(2.0**40))
        below = (scores.amax(-1, keepdim=True) - scores).clamp_(max=24 * 256).long()
        shares = exponentials(256, 24, 30).to(q.device)[below]
        if hidden is not None:
            shares = shares.masked_fill(hidden, 0)
        shares = _rounded(shares / shares.sum(-1, keepdim=True), 22, 0)
        return _rounded(shares @ _rounded(v, 12, 9), 12, 12)

    def activation(self, x: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return F.relu(x).square()

    def weight(self, x: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return _rounded(x, 14, 2)


def frequencies(logits: Tensor) -> Tensor:
    """Integer frequencies (..., V) of logits (..., V) that are the same everywhere: 2^20 e^l, at steps of 2^-6."""
    below = ((logits.amax(-1, keepdim=True) - logits) * 64).round().clamp_(max=20 * 64).long()
    return exponentials(64, 20, 20).to(logits.device)[below]


@cache
def exponentials(steps: int, lowest: int, bits: int) -> Tensor:
    """2^bits e^(-i / steps), rounded to whole numbers, for i = 0 ... lowest * steps; float64."""
    with localcontext() as context:
        context.prec = 30
        values = [int((Decimal(-i) / steps).exp() * 2**bits + Decimal("0.5")) for i in range(lowest * steps + 1)]
    return torch.tensor(values, dtype=torch.float64)


def _rounded(x: Tensor, bits: int, size: int) -> Tensor:
    """Multiples of 2^-bits within 2^size."""
    return x.mul(2.0**bits).round_().clamp_(-(2.0 ** (bits + size)), 2.0 ** (bits + size)).mul_(2.0**-bits)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
