"""The nearest codewords on a CPU by SciPy's k-d tree, where that takes less time than a product with all codewords.

A tree helps in few dimensions, and only for latents that lie among the codewords: far from all of them it would visit
every leaf. So it looks no farther than a few times the spacing of codewords. What it does not find there, and where
distances are too close for its rounding, is searched in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gsqtok.search import chunked
from gsqtok.search.codebook import Codebook
from gsqtok.search.space import Space

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

LARGEST_D = 10
PAYS = 1024  # latents for which a tree is built that may never be used again
SAMPLE = 1024  # codewords whose spacing is measured
SPACED = 0.99  # of which no more than this share are closer to another than the spacing
INSIDE = 8  # how many times as much volume is searched as lies within the spacing around a codeword
LATENTS = 1 << 16  # latents at once
LEAF = 32  # codewords; twice SciPy's usual number, as more of them are looked at for two neighbours
A_THREAD = 1 << 10  # latents for which it is worth to start one
ORDERED = 8  # channels by which latents are ordered
TOLERANCE = 1e-12  # relative; far above the rounding of a distance in float64


def pays(latents: Tensor, codebook: Codebook) -> bool:
    """Whether the tree is faster than blocks, as measured with uniform and Gaussian rows."""
    v, d = codebook.rows.shape
    return d <= LARGEST_D and v >= 1 << max(d + 6, 2 * d) and (codebook.known or len(latents) >= PAYS)


def nearest(latents: Tensor, codebook: Codebook, metric: str, k: int = 1) -> Tensor:
    """As `chunked.nearest`."""
    tree = codebook.prepared(Tree.of, metric)
    found, proven = zip(*(tree.search(block, k) for block in torch.split(latents, LATENTS)), strict=True)
    indices, rest = torch.cat(found), (~torch.cat(proven)).nonzero().flatten()
    if len(rest) > 0:
        indices[rest] = chunked.nearest(latents[rest], codebook, metric, k)
    return indices


@dataclass(frozen=True)
class Tree:
    """A k-d tree of a codebook's points, which lie in memory in the order of its leaves: that halves the time."""

    space: Space
    tree: cKDTree
    order: np.ndarray  # (V,): the codeword of each point in the tree
    quartiles: np.ndarray  # (3, d) of the points
    radius: float  # within which it looks

    @classmethod
    def of(cls, codebook: Tensor, metric: str) -> Tree:
        """Build the tree of a finite codebook (V, d)."""
        from scipy.spatial import cKDTree  # takes a second to import

        space = Space.of(codebook, metric)
        points = space.points(codebook).numpy()
        order = cKDTree(points, LEAF, balanced_tree=False).indices
        points = points[order]
        tree = cKDTree(points, LEAF, balanced_tree=False)
        sample = points[:: max(1, len(points) // SAMPLE)]
        quartiles = np.quantile(sample, (0.25, 0.5, 0.75), axis=0)
        # A codeword of zeros is no point on the sphere. Then nothing is found, and all is searched in blocks.
        if metric == "cosine" and not points.any(axis=1).all():
            return cls(space, tree, order, quartiles, 0.0)
        spacing = float(np.quantile(tree.query(sample, k=2)[0][:, 1], SPACED, method="higher"))
        return cls(space, tree, order, quartiles, spacing * INSIDE ** (1 / points.shape[1]))

    def search(self, latents: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Indices, (N,) or if k > 1 (N, k), and for which latents they are certain."""
        z = self.space.points(latents).numpy()
        order = self._order(z)
        # One more than is wanted. All distances of the others are at least the last, so where no two are too close to
        # tell apart, neither the tree's rounding nor its order matters.
        threads = max(1, min(torch.get_num_threads(), len(z) // A_THREAD))
        distances, index = self.tree.query(
            z.take(order, axis=0), k=k + 1, distance_upper_bound=self.radius, workers=threads
        )
        apart = distances[:, 1:] > distances[:, :-1] * (1 + TOLERANCE)
        certain = apart.all(axis=1) & (distances[:, k - 1] < self.radius * (1 - TOLERANCE))
        found, proven = np.empty((len(z), k), np.int64), np.empty(len(z), bool)
        found[order] = self.order[index[:, :k].clip(max=len(self.order) - 1)]  # what is not found has no index
        proven[order] = certain
        indices = torch.from_numpy(found)
        return (indices[:, 0] if k == 1 else indices), torch.from_numpy(proven)

    def _order(self, z: np.ndarray) -> np.ndarray:
        """An order (N,) in which near points follow each other and visit the same leaves: by halves, then quarters."""
        z, (lower, middle, upper) = z[:, :ORDERED], self.quartiles[:, :ORDERED]
        half = z > middle
        bits = np.concatenate([(z > lower) ^ half ^ (z > upper), half], axis=1)
        places = (bits @ np.exp2(np.arange(bits.shape[1], dtype=np.float32))).astype(np.uint16)
        return places.argsort(kind="stable")  # of 16 bits that is a radix sort
