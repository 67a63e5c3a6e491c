"""The nearest codeword on any device, in blocks of a float64 product, never holding all N x V scores.

Of each block only the largest score of every tile of codewords is kept; the best tile's scores are then computed again
to tell which of its codewords it was. That leaves one pass over the scores while they are in cache.
"""

import torch
from torch import Tensor

from gsqtok.search.rows import largest_entry, unit

TILE = 64  # codewords whose scores are reduced to their maximum
BLOCK = {"cpu": (256, 1024), "cuda": (4096, 4096)}  # latents, codewords; 2 MiB of scores are a CPU core's L2 cache
AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 23}  # numbers a latent block's tile maxima, or its best tiles, may take
CONVERTED = 1 << 15  # codewords converted at once
ROUNDING = 2.0**-50  # of float64 sums, with room to spare


def nearest(latents: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """Index of the nearest codeword, int64 (N,), of finite latents (N, d) in a finite codebook (V, d).

    Codewords within float64's rounding of the best count as ties, which go to the lowest index. Whatever the settings
    of matrix products, no TF32 or bfloat16 is used, and nothing waits for the device.
    """
    to_points = _Points(latents, codebook, metric)
    tiles = -(-len(codebook) // TILE)
    points = to_points.codewords(codebook, tiles * TILE).view(tiles, TILE, -1)
    reach = points.square().sum(dim=2).amax(dim=1).sqrt()
    kind = "cuda" if latents.is_cuda else "cpu"
    rows = max(1, AT_ONCE[kind] // max(tiles, TILE * points.shape[2]))

    found = torch.empty(len(latents), dtype=torch.int64, device=latents.device)
    for start in range(0, len(latents), rows):
        z = to_points.latents(latents[start : start + rows])
        maxima = _tile_maxima(points, z, *BLOCK[kind])
        best, tile = maxima.max(dim=0)
        slack = ROUNDING * z.shape[1] * z.norm(dim=1) * reach[tile]
        tile = (maxima >= best - slack).byte().argmax(dim=0)
        scores = torch.bmm(points[tile], z.unsqueeze(2)).squeeze(2)
        within = (scores >= (scores.amax(dim=1) - slack).unsqueeze(1)).byte().argmax(dim=1)
        found[start : start + rows] = tile * TILE + within
    return found


def _tile_maxima(points: Tensor, z: Tensor, rows: int, codewords: int) -> Tensor:
    """Largest product of each latent z (n, k) with the codewords of each tile (tiles, TILE, k): (tiles, n)."""
    maxima = z.new_empty(len(points), len(z))
    for row in range(0, len(z), rows):
        columns = z[row : row + rows].T
        scores = z.new_empty(codewords, columns.shape[1])
        for first in range(0, len(points), codewords // TILE):
            block = points[first : first + codewords // TILE]
            # Codewords down, latents across: the maximum over a tile is then one of whole vectors, not within them.
            product = torch.mm(block.flatten(0, 1), columns, out=scores[: len(block) * TILE])
            torch.amax(
                product.unflatten(0, (-1, TILE)), dim=1, out=maxima[first : first + len(block), row : row + rows]
            )
    return maxima


class _Points:
    """Maps rows to float64 points of which the nearest pair is the one of the largest inner product.

    Codewords are shifted by a centre: that changes all scores of a latent alike (and, if the latents shift along, no
    distance), so the order stays, while the scores of codewords that lie close together keep more digits.
    """

    def __init__(self, latents: Tensor, codebook: Tensor, metric: str):
        self.metric = metric
        self.scale = None if metric == "cosine" else largest_entry(latents, codebook)
        sample = codebook[:: max(1, len(codebook) // 1024)]
        self.centre = self._scaled(sample).median(dim=0).values  # a median, so that no far codeword drags it along

    def _scaled(self, rows: Tensor) -> Tensor:
        return unit(rows) if self.scale is None else rows.double() / self.scale

    def latents(self, rows: Tensor) -> Tensor:
        points = self._scaled(rows)
        if self.metric == "cosine":
            return points
        return torch.nn.functional.pad(points - self.centre, (0, 1), value=1.0)

    def codewords(self, codebook: Tensor, count: int) -> Tensor:
        """The codebook, its last row repeated up to count rows: a repeated row never wins, since its first copy ties.

        A last column -|c|^2 / 2 turns the product into a Euclidean score: |z - c|^2 = |z|^2 - 2 (z.c - |c|^2 / 2).
        """
        d = codebook.shape[1]
        points = self.centre.new_empty(count, d if self.metric == "cosine" else d + 1)
        for start in range(0, len(codebook), CONVERTED):
            block = self._scaled(codebook[start : start + CONVERTED]) - self.centre
            rows = points[start : start + len(block)]
            rows[:, :d] = block
            if self.metric == "euclidean":
                rows[:, d] = block.square().sum(dim=1) / -2
        points[len(codebook) :] = points[len(codebook) - 1]
        return points
