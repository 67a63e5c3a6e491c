"""The nearest codeword on a CPU by a grid over the sphere, for a codebook of few dimensions that stays.

Each cell has a list of all codewords that are nearest to any point of it. A search looks up a latent's cell and
compares the distances of its list, some two to twenty codewords: exact, with nothing left to prove. To make the lists
takes as long as some hundred searches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gsqtok.search.codebook import Codebook
from gsqtok.search.space import Space

SIDE = {3: 80, 4: 20}  # cells along a side, by dimensions: some 35,000 cells touch the sphere
SMALLEST, LARGEST = 1 << 9, 1 << 13  # codewords for which this is faster than all scores, and than the tree
STAYS = 1 << 19  # latents after which a codebook is taken to stay
LISTED = 1 << 21  # codewords at most in all lists together
CELLS = LATENTS = 1 << 12  # at once
SLACK = 1e-9  # of distances; far above their rounding


def pays(codebook: Codebook) -> bool:
    """Whether this is faster than a product or a tree, given how often the codebook has been searched."""
    v, d = codebook.rows.shape
    return d in SIDE and SMALLEST <= v <= LARGEST and codebook.searched >= STAYS


@dataclass(frozen=True)
class Grid:
    """The cells of a grid over [-1, 1]^d that touch the sphere, and their codewords."""

    space: Space
    points: np.ndarray  # (d, V)
    side: int
    cells: np.ndarray  # (side^d,): which list; -1, the last, for cells that do not touch: only zero rows are there
    count: np.ndarray  # (lists,): its length
    start: np.ndarray  # (lists,): where it starts
    listed: np.ndarray  # the lists one after the other, each in order of index

    @classmethod
    def of(cls, codebook: Tensor) -> Grid | None:
        """Prepare a finite codebook (V, d), if no codeword is zero, and they do not lie so close that lists get long.

        A cell lies within a ball around its centre, of radius r. Let c be the codeword nearest to the centre. Then the
        nearest one to a point of the cell is at most 2 r farther from the centre than c is, and not on c's side of the
        ball altogether.
        """
        from scipy.spatial import cKDTree  # takes a second to import

        space, threads = Space.of(codebook, "cosine"), torch.get_num_threads()
        points = space.points(codebook).numpy()
        if not points.any(axis=1).all():
            return None
        tree, d, side = cKDTree(points), points.shape[1], SIDE[points.shape[1]]
        places = (2 * np.arange(side) + 1) / side - 1
        norm = np.sqrt(sum(np.meshgrid(*[places**2] * d, indexing="ij"))).reshape(-1)
        half = d**0.5 / side  # of a cell's diagonal
        touching = np.flatnonzero(np.abs(norm - 1) <= half + SLACK)
        norm = norm[touching, None]
        centres = places[np.stack(np.unravel_index(touching, (side,) * d), axis=1)] / norm  # moved onto the sphere
        radius = np.sqrt(np.maximum(half**2 - (1 - norm[:, 0]) ** 2, 0) / norm[:, 0]) + SLACK
        nearest, first = tree.query(centres, workers=threads)
        reach = nearest + 2 * radius + SLACK
        if tree.query_ball_point(centres, reach, return_length=True, workers=threads).sum() > LISTED:
            return None
        counts, lists = [], []
        for cell in range(0, len(centres), CELLS):
            part = slice(cell, cell + CELLS)
            found = tree.query_ball_point(centres[part], reach[part], workers=threads, return_sorted=True)
            row = np.repeat(np.arange(len(found)), [len(codewords) for codewords in found])
            index = np.concatenate(found).astype(np.int64)
            c = points[first[part]][row]
            ahead = np.square(points[index] - centres[part][row]).sum(axis=1) - np.square(nearest[part])[row]
            near = ahead <= 2 * radius[part][row] * np.sqrt(np.square(points[index] - c).sum(axis=1)) + SLACK
            counts.append(np.bincount(row[near], minlength=len(found)))
            lists.append(index[near])
        cells = np.full(side**d, -1, np.int32)
        cells[touching] = np.arange(len(touching))
        count = np.concatenate([*counts, [1]])  # a latent of zeros gets the first codeword
        start = count.cumsum() - count
        listed = np.concatenate([*lists, [0]]).astype(np.int32)
        return cls(space, np.ascontiguousarray(points.T), side, cells, count, start, listed)

    def nearest(self, latents: Tensor) -> Tensor:
        """As `chunked.nearest` of one codeword by cosine."""
        return torch.cat([self._nearest(block) for block in torch.split(latents, LATENTS)])

    def _nearest(self, latents: Tensor) -> Tensor:
        z = np.ascontiguousarray(self.space.points(latents).numpy().T)
        places = np.minimum(((z + 1) * (self.side / 2)).astype(np.int64), self.side - 1)
        row = self.cells[np.ravel_multi_index(tuple(places), (self.side,) * len(z))]
        count = self.count[row]
        start = count.cumsum() - count
        index = self.listed[np.repeat(self.start[row] - start, count) + np.arange(count.sum())]
        distance = np.zeros(len(index))
        for values, codewords in zip(z, self.points, strict=True):
            distance += np.square(np.repeat(values, count) - codewords[index])
        least = np.repeat(np.minimum.reduceat(distance, start), count)
        hit = np.flatnonzero(distance == least)
        return torch.from_numpy(index[hit[np.searchsorted(hit, start)]].astype(np.int64))  # of equal ones the first
