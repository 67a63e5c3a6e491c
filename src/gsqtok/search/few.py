"""The nearest codeword on a CPU where there are few scores: all of them in one product, of all groups at once.

What counts here is the number of steps. One of NumPy takes a fifth of the time that one of torch does, its argmax a
tenth. A score that is ahead of all others by more than the product may be off by is that of the nearest codeword; the
few latents without one are compared with all codewords, or many of them searched in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gsqtok.search import chunked
from gsqtok.search.chunked import Points
from gsqtok.search.codebook import Codebook

SCORES = 1 << 19  # at most: 2 MiB
DISTANCES = 1 << 14  # at most, before the search in blocks is faster


def pays(latents: Tensor, codebook: Codebook) -> bool:
    """Whether this is faster than the search in blocks."""
    return latents.shape[:-1].numel() * codebook.rows.shape[-2] <= SCORES


def nearest(latents: Tensor, codebook: Codebook, metric: str) -> Tensor:
    """As `chunked.nearest` of one codeword; with groups, latents (N, G, d) and a codebook (G, V, d), int64 (N, G)."""
    groups = codebook.of_groups() if latents.ndim == 3 else [codebook]
    rows = latents.view(len(latents), len(groups), -1)
    few = codebook.prepared(Few.of, metric, chunked.product_dtype(latents))
    found, doubtful = few.search(rows)
    indices = torch.from_numpy(found)
    if doubtful.any():
        for group, own in enumerate(groups):
            chosen = torch.from_numpy(doubtful[group].nonzero()[0])
            if len(chosen) > 0:
                indices[group, chosen] = _settled(rows[chosen, group], own, metric, few.groups[group])
    return indices.T if latents.ndim == 3 else indices[0]


def _settled(latents: Tensor, codebook: Codebook, metric: str, points: Points) -> Tensor:
    """The nearest by the distances themselves."""
    n, v = len(latents), len(codebook.rows)
    if n * v > DISTANCES:
        return chunked.nearest(latents, codebook, metric)
    distances = points.space.distance(latents.repeat_interleave(v, dim=0), codebook.rows.repeat(n, 1))
    return torch.from_numpy(distances.view(n, v).numpy().argmin(axis=1))  # of equal ones the first


@dataclass(frozen=True)
class Few:
    """The codebooks of G groups for one product."""

    groups: list[Points]
    codewords: Tensor  # (G, columns, V); cosine without the column of errors
    errors: np.ndarray  # (G, 1) cosine: the largest of a score of a latent with entries up to 1; Euclidean

    @classmethod
    def of(cls, codebook: Tensor, metric: str, dtype: torch.dtype) -> Few:
        """Prepare a finite codebook (V, d) or (G, V, d)."""
        (v, d), books = codebook.shape[-2:], codebook if codebook.ndim == 3 else codebook[None]
        groups = [Points.of(book, metric, dtype) for book in books]
        columns = d if metric == "cosine" else d + 2
        codewords = torch.stack([points.codewords.flatten(0, 1)[:v, :columns].T for points in groups])
        errors = torch.stack([points.errors for points in groups])
        return cls(groups, codewords, errors.numpy() if metric == "euclidean" else errors.amax(dim=1).numpy() * d**0.5)

    def search(self, latents: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """For latents (N, G, d): the indices of the largest scores (G, N), and where that is not certain."""
        z, slack = self._euclidean(latents) if self.errors.ndim == 3 else self._cosine(latents)
        groups, _, n = z.shape
        scores = torch.bmm(torch.from_numpy(z).transpose(1, 2), self.codewords)
        rows = scores.numpy().reshape(groups * n, -1)
        flat = rows.reshape(-1)
        found = rows.argmax(axis=1)
        best = found + np.arange(0, len(flat), rows.shape[1])
        largest = flat[best]
        flat[best] = -np.inf
        lead = (largest - scores.amax(dim=2).numpy().reshape(-1)).reshape(groups, n)
        found = found.reshape(groups, n)
        if self.errors.ndim == 3:  # of each one's tile: codewords may be of any length
            tile = self.groups[0].codewords.shape[1]
            own = np.take_along_axis(self.errors, found[:, :, None] // tile, axis=1)
            margin = 2 * (own * z[:, -2:].transpose(0, 2, 1)).sum(axis=2)
        else:
            margin = 2 * self.errors
        return found, lead <= margin + slack

    def _cosine(self, latents: Tensor) -> tuple[np.ndarray, float]:
        """As `Points.latents`, (G, d, N), without the last column."""
        dtype = self.codewords.dtype
        wide = latents.permute(1, 2, 0).to(
            torch.promote_types(latents.dtype, dtype), memory_format=torch.contiguous_format
        )
        largest = wide.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)
        return (wide / largest).to(dtype).numpy(), 16 * (wide.shape[1] + 1) * torch.finfo(dtype).tiny

    def _euclidean(self, latents: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """As `Points.latents`, (G, d + 2, N) and (G, N)."""
        parts = [points.latents(rows) for points, rows in zip(self.groups, latents.unbind(1), strict=True)]
        return np.stack([z.numpy() for z, _ in parts]), np.stack([np.asarray(slack) for _, slack in parts])
