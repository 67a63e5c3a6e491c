"""The space in which rows are compared, and the distance there that all searches in it agree on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gsqtok.search.rows import TINY, unit

CONVERTED = 1 << 16  # numbers converted at once, so that no intermediate result is as large as a codebook


@dataclass(frozen=True)
class Space:
    """Rows as float64: of length 1 if the metric is cosine, else divided by a power of two near the largest codeword.

    The latter rounds nothing that was float32, and no square of it overflows or vanishes.
    """

    metric: str
    scale: float

    @classmethod
    def of(cls, codebook: Tensor, metric: str) -> Space:
        """The space for a finite codebook (V, d). On CUDA it waits for the device."""
        if metric == "cosine":
            return cls(metric, 1.0)
        largest = codebook.abs().amax().double().clamp_min(TINY).item()
        return cls(metric, 2.0 ** math.frexp(largest)[1])

    def points(self, rows: Tensor) -> Tensor:
        """Rows (N, d) of any floating dtype, as float64 points of the space."""
        at_once = max(1, CONVERTED // rows.shape[1])
        if len(rows) <= at_once:
            return self._points(rows)
        points = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
        for part, target in zip(torch.split(rows, at_once), torch.split(points, at_once), strict=True):
            target.copy_(self._points(part))
        return points

    def _points(self, rows: Tensor) -> Tensor:
        return unit(rows) if self.metric == "cosine" else (rows.double() / self.scale).clamp_(-(2.0**500), 2.0**500)

    def distance(self, latents: Tensor, codewords: Tensor) -> Tensor:
        """The squared distance (N,) of rows (N, d) and (N, d), summed term by term: on every machine the same bits.

        Cosine: a row of zeros is at a right angle to everything.
        """
        z, c = self.points(latents), self.points(codewords)
        distance = z.new_zeros(len(z))
        for difference in (z - c).T:
            distance += difference.square()
        if self.metric == "cosine":
            distance.masked_fill_(~(z.any(dim=1) & c.any(dim=1)), 2.0)
        return distance
