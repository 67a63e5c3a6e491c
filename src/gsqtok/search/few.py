"""The nearest codeword on a CPU where there are few codewords: by all scores of a product, of all groups at once.

NumPy's argmax takes a tenth of the time that torch's does, and one of its steps a fifth. A score that is ahead of all
others by more than the product may be off by is that of the nearest codeword; for the few latents without one, the
codewords that come near are compared by the distances themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gsqtok.search import chunked
from gsqtok.search.chunked import Points
from gsqtok.search.codebook import Codebook
from gsqtok.search.space import Space

CODEWORDS = 1 << 11  # at most
SCORES = 1 << 21  # at once: 8 MiB. Less would stay nearer, but all threads wait for each other after each block
DISTANCES = 1 << 16  # at most; where more scores come near, the search in blocks compares them


def pays(codebook: Codebook) -> bool:
    """Whether this is faster than the search in blocks, which looks at tiles of scores alone."""
    return codebook.rows.shape[-2] <= CODEWORDS


def nearest(latents: Tensor, codebook: Codebook, metric: str) -> Tensor:
    """As `chunked.nearest` of one codeword; with groups, latents (N, G, d) and a codebook (G, V, d), int64 (N, G)."""
    groups = codebook.of_groups() if latents.ndim == 3 else [codebook]
    rows = latents.view(len(latents), len(groups), -1)
    few = codebook.prepared(Few.of, metric, chunked.product_dtype(latents))
    g, _, v = few.codewords.shape
    at_once = max(1, SCORES // (g * v))
    scores = few.codewords.new_empty(g * min(at_once, len(rows)) * v)
    if len(rows) <= at_once:
        indices = few.search(rows, scores, groups)
    else:
        indices = torch.cat([few.search(block, scores, groups) for block in torch.split(rows, at_once)], dim=1)
    return indices.T if latents.ndim == 3 else indices[0]


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

    def search(self, latents: Tensor, scores: Tensor, codebooks: list[Codebook]) -> Tensor:
        """Indices (G, N) for latents (N, G, d); their scores are written to the first G x N x V of ``scores``."""
        z, slack = self._euclidean(latents) if self.errors.ndim == 3 else self._cosine(latents)
        (groups, _, n), v = z.shape, self.codewords.shape[2]
        scores = scores[: groups * n * v].view(groups, n, v)
        torch.bmm(torch.from_numpy(z).transpose(1, 2), self.codewords, out=scores)
        rows = scores.numpy()
        flat = rows.reshape(-1)
        starts = np.arange(0, len(flat), v).reshape(groups, n)
        found = rows.argmax(axis=2)
        best = found + starts
        largest = flat[best]
        flat[best] = -np.inf
        second = flat[rows.argmax(axis=2) + starts]
        if self.errors.ndim == 3:  # of each one's tile: codewords may be of any length
            tile = self.groups[0].codewords.shape[1]
            own = np.take_along_axis(self.errors, found[:, :, None] // tile, axis=1)
            margin = 2 * (own * z[:, -2:].transpose(0, 2, 1)).sum(axis=2)
        else:
            margin = 2 * self.errors
        threshold = largest - (margin + slack)
        indices = torch.from_numpy(found)
        if (second >= threshold).any():
            flat[best] = np.inf
            for group, codebook in enumerate(codebooks):
                (chosen,) = (second[group] >= threshold[group]).nonzero()
                near = rows[group, chosen] >= threshold[group, chosen, None]
                settled = self._settled(latents[chosen, group], codebook, near, self.groups[group].space)
                indices[group, torch.from_numpy(chosen)] = settled
        return indices

    def _settled(self, latents: Tensor, codebook: Codebook, near: np.ndarray, space: Space) -> Tensor:
        """The nearest of the codewords (N, V) that come near, by the distances themselves."""
        row, index = near.nonzero()
        if len(row) > DISTANCES:
            return chunked.nearest(latents, codebook, space.metric)
        distance = space.distance(latents[row], codebook.rows[index]).numpy()
        order = np.lexsort((distance, row))  # equal ones stay in the order of their index
        return torch.from_numpy(index[order[np.searchsorted(row, np.arange(len(latents)))]])

    def _cosine(self, latents: Tensor) -> tuple[np.ndarray, float]:
        """As `Points.latents`, (G, d, N), without the last column."""
        dtype = self.codewords.dtype
        if latents.dtype != dtype:
            latents = latents.to(torch.promote_types(latents.dtype, dtype))
        wide = np.ascontiguousarray(latents.numpy().transpose(1, 2, 0))
        largest = np.maximum(np.abs(wide).max(axis=1, keepdims=True), torch.finfo(latents.dtype).tiny)
        z = (wide / largest).astype(np.float64 if dtype == torch.float64 else np.float32, copy=False)
        return z, 16 * (wide.shape[1] + 1) * torch.finfo(dtype).tiny

    def _euclidean(self, latents: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """As `Points.latents`, (G, d + 2, N) and (G, N)."""
        parts = [points.latents(rows) for points, rows in zip(self.groups, latents.unbind(1), strict=True)]
        return np.stack([z.numpy() for z, _ in parts]), np.stack([np.asarray(slack) for _, slack in parts])
