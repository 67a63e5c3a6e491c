"""The nearest codeword on any device, in blocks of a matrix product, never holding all N x V scores.

Of each block only the largest score of every tile of codewords is kept; the best tile's scores are then computed again
to tell which of its codewords it was. That leaves one pass over the scores while they are in cache.

On a CPU the product is in float32 first. Its rounding has a proven bound, and where one codeword alone is within it, as
with all but one latent in thousands, that one is the nearest; the others are searched again in float64.
"""

import torch
from torch import Tensor

from gsqtok.search.rows import largest_entry, unit

TILE = 64  # codewords whose scores are reduced to their maximum
CODEWORDS = 2048  # codewords a block
LATENTS = {"cpu": 128, "cuda": 4096}  # latents a block; for each CPU thread, whose 1 MiB of scores stays in L2 cache
AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 23}  # numbers that a latent block's tile maxima, or its best tiles, may take
CONVERTED = 1 << 13  # codewords converted at once


def nearest(latents: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """Index of the nearest codeword, int64 (N,), of finite latents (N, d) in a finite codebook (V, d).

    Codewords within float64's rounding of the best count as ties, which go to the lowest index. Settings that allow
    TF32 or bfloat16 in matrix products change nothing. On CUDA nothing waits for the device.
    """
    to_points = _Points(latents, codebook, metric)
    if latents.is_cuda or not _float32_is_kept():
        return _search(to_points, latents, codebook, torch.float64)[0]
    found, alone = _search(to_points, latents, codebook, torch.float32)
    doubtful = (~alone).nonzero().flatten()
    if len(doubtful) > 0:
        found[doubtful] = _search(to_points, latents[doubtful], codebook, torch.float64)[0]
    return found


def _search(to_points: "_Points", latents: Tensor, codebook: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The lowest index within rounding of the best score, and whether no other codeword is: (N,) each."""
    tiles = -(-len(codebook) // TILE)
    points, longest = to_points.codewords(codebook, tiles, dtype)
    kind = "cuda" if latents.is_cuda else "cpu"
    rows = max(1, AT_ONCE[kind] // max(tiles, TILE * points.shape[2]))

    found = torch.empty(len(latents), dtype=torch.int64, device=latents.device)
    alone = torch.empty(len(latents), dtype=torch.bool, device=latents.device)
    for start in range(0, len(latents), rows):
        block = slice(start, start + rows)
        z = to_points.latents(latents[block], dtype)
        maxima = _tile_maxima(points, z, LATENTS[kind] * (1 if kind == "cuda" else torch.get_num_threads()))
        best = maxima.amax(dim=0)
        # A product of k terms, of entries rounded before, is off by at most (k + 2) roundings of |z| |c|. In float64
        # the longest c of the best tile counts, lest one far codeword make ties of all others.
        length = longest if dtype == torch.float32 else points[maxima.argmax(dim=0)].norm(dim=2).amax(dim=1)
        slack = (z.shape[1] + 3) * torch.finfo(dtype).eps * z.norm(dim=1) * length + torch.finfo(dtype).tiny
        near_tiles = maxima >= best - slack
        tile = near_tiles.byte().argmax(dim=0)
        scores = torch.bmm(points[tile], z.unsqueeze(2)).squeeze(2)
        near = scores >= (scores.amax(dim=1) - slack).unsqueeze(1)
        found[block] = tile * TILE + near.byte().argmax(dim=1)
        alone[block] = (near_tiles.sum(dim=0) == 1) & (near.sum(dim=1) == 1)
    return found, alone


def _float32_is_kept() -> bool:
    """Whether torch's settings keep float32 matrix products on a CPU from being rounded to TF32 or bfloat16.

    To try it out would not do: which shapes a processor rounds is its own affair.
    """
    try:
        if torch.get_float32_matmul_precision() != "highest":
            return False
    except RuntimeError:  # torch refuses to answer once its newer settings were used for one backend alone
        return False
    matmul = getattr(torch.backends.mkldnn, "matmul", None)  # of those newer settings, torch >= 2.9
    return matmul is None or matmul.fp32_precision in ("none", "ieee")


def _tile_maxima(points: Tensor, z: Tensor, rows: int) -> Tensor:
    """Largest product of each latent z (n, k) with the codewords of each tile (tiles, TILE, k): (tiles, n)."""
    maxima = z.new_empty(len(points), len(z))
    for row in range(0, len(z), rows):
        columns = z[row : row + rows].T
        scores = z.new_empty(CODEWORDS, columns.shape[1])
        for first in range(0, len(points), CODEWORDS // TILE):
            block = points[first : first + CODEWORDS // TILE]
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

    def latents(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        points = self._scaled(rows)
        if self.metric == "euclidean":
            points = torch.nn.functional.pad(points - self.centre, (0, 1), value=1.0)
        return points.to(dtype)

    def codewords(self, codebook: Tensor, tiles: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The codebook as (tiles, TILE, k), and the length of its longest point.

        The last row is repeated to fill the last tile: its first copy ties, so that a repeated row never wins.
        A last column -|c|^2 / 2 turns the product into a Euclidean score: |z - c|^2 = |z|^2 - 2 (z.c - |c|^2 / 2).
        """
        d = codebook.shape[1]
        points = codebook.new_empty(tiles * TILE, d if self.metric == "cosine" else d + 1, dtype=dtype)
        longest = self.centre.new_zeros(())
        for start in range(0, len(codebook), CONVERTED):
            block = self._scaled(codebook[start : start + CONVERTED]) - self.centre
            if self.metric == "euclidean":
                block = torch.cat([block, block.square().sum(dim=1, keepdim=True) / -2], dim=1)
            points[start : start + len(block)] = block
            longest = torch.maximum(longest, block.norm(dim=1).amax())
        points[len(codebook) :] = points[len(codebook) - 1]
        return points.view(tiles, TILE, -1), longest.to(dtype)
