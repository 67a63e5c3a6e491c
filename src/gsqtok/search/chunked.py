"""The nearest codewords on any device, in blocks of a matrix product, never holding all N x V scores.

1. A score is a product that grows as the distance falls. Two more columns of the product add the largest error that
   the score can have, so that what comes out is an upper bound. Of each block only the largest bound of every tile of
   codewords is kept.
2. The k-th largest of the tiles' lower bounds is the threshold: what stays below it is not among the k nearest.
3. At k = 1 one codeword alone reaches the threshold for all but one latent in thousands, and that is the nearest. In
   all other cases the codewords that reach it are compared by the distances themselves, in float64.

An error is bounded by the lengths of the very latent and codeword that are multiplied. A few far codewords therefore
cost the others no precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gsqtok.search.rows import TINY, unit

CODEWORDS = 2048  # codewords a block
LATENTS = {"cpu": 128, "cuda": 4096}  # latents a block; for each CPU thread, whose 1 MiB of scores stays in L2 cache
AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 23}  # numbers that a latent block's tile maxima, or its best tiles, may take
CONVERTED = 1 << 13  # codewords converted at once
EPS = torch.finfo(torch.float64).eps


def nearest(latents: Tensor, codebook: Tensor, metric: str, k: int = 1) -> Tensor:
    """Indices of the k nearest codewords, int64 (N,) or if k > 1 (N, k), of finite latents and codebook, V >= k.

    Ordered by float64 distance, equal ones by index. Settings that allow TF32 or bfloat16 in matrix products change
    nothing. On CUDA it waits for the device, to learn how many candidates there are.
    """
    dtype = torch.float32 if latents.device.type == "cpu" and _float32_is_kept() else torch.float64
    points = Points.of(codebook, metric, dtype)
    kind = "cuda" if latents.is_cuda else "cpu"
    tiles, tile, columns = points.codewords.shape
    rows = max(1, AT_ONCE[kind] // max(tiles, tile * columns))
    found = [_search(points, codebook, block, k) for block in latents.split(rows)]
    return found[0] if len(found) == 1 else torch.cat(found)


def _search(points: Points, codebook: Tensor, latents: Tensor, k: int) -> Tensor:
    z, slack = points.latents(latents)
    maxima = _tile_maxima(points.codewords, z)
    lower = torch.addmm(maxima, points.errors, z[:, -points.errors.shape[1] :].T, alpha=-2)
    threshold = (lower.amax(dim=0) if k == 1 else lower.topk(min(k, len(lower)), dim=0).values[-1]) - slack
    if k > len(lower):
        threshold = torch.full_like(threshold, -torch.inf)
    near = maxima >= threshold
    if k > 1:
        return _settle(points, codebook, latents, z, threshold, near, k)

    first = near.byte().argmax(dim=0)
    scores = torch.bmm(points.codewords[first], z.unsqueeze(2)).squeeze(2)
    found = first * scores.shape[1] + scores.argmax(dim=1)
    several = (near.sum(dim=0) > 1) | ((scores >= threshold.unsqueeze(1)).sum(dim=1) > 1)
    if points.metric == "cosine":  # a zero latent has the same similarity to all
        zero = z[:, -1] == 0
        found.masked_fill_(zero, 0)
        several &= ~zero
    rows = several.nonzero().flatten()
    if len(rows) > 0:
        found[rows] = _settle(points, codebook, latents[rows], z[rows], threshold[rows], near[:, rows], 1)[:, 0]
    return found


def _tile_maxima(codewords: Tensor, z: Tensor) -> Tensor:
    """Largest product of each latent z (n, c) with the codewords of each tile (tiles, tile, c): (tiles, n)."""
    tiles, tile, _ = codewords.shape
    rows = LATENTS["cuda"] if z.is_cuda else LATENTS["cpu"] * torch.get_num_threads()
    maxima = z.new_empty(tiles, len(z))
    at_once = CODEWORDS // tile
    for row in range(0, len(z), rows):
        columns = z[row : row + rows].T
        scores = z.new_empty(min(CODEWORDS, tiles * tile), columns.shape[1])
        for first in range(0, tiles, at_once):
            block = codewords[first : first + at_once]
            # Codewords down, latents across: the maximum over a tile is then one of whole vectors, not within them.
            product = torch.mm(block.flatten(0, 1), columns, out=scores[: len(block) * tile])
            torch.amax(product.unflatten(0, (-1, tile)), dim=1, out=maxima[first : first + at_once, row : row + rows])
    return maxima


def _settle(
    points: Points, codebook: Tensor, latents: Tensor, z: Tensor, threshold: Tensor, near: Tensor, k: int
) -> Tensor:
    """The k nearest, (n, k), of each latent's codewords that reach its threshold, by distances in float64.

    Args:
        points: the prepared codebook.
        codebook: (V, d) as it was given.
        latents: (n, d), as they were given.
        z: (n, c), the same prepared.
        threshold: (n,).
        near: bool (tiles, n), the tiles in which a codeword reaches the threshold.
        k: how many; at least as many codewords reach the threshold.
    """
    _, tile, columns = points.codewords.shape
    found = torch.empty(len(latents), k, dtype=torch.int64, device=z.device)
    # Groups of latents, each with about as many products as may be at once.
    products = near.sum(dim=0).cumsum(dim=0) * (tile * columns)
    group = products // AT_ONCE["cuda" if z.is_cuda else "cpu"]
    counts = torch.unique_consecutive(group, return_counts=True)[1].tolist()
    for rows in torch.arange(len(latents), device=z.device).split(counts):
        row, within = near[:, rows].T.nonzero(as_tuple=True)
        scores = torch.bmm(points.codewords[within], z[rows[row]].unsqueeze(2)).squeeze(2)
        index = within.unsqueeze(1) * tile + torch.arange(tile, device=z.device)
        candidate = (scores >= threshold[rows[row]].unsqueeze(1)) & (index < len(codebook))
        row, index = row.unsqueeze(1).expand_as(index)[candidate], index[candidate]
        distance = points.distance(latents[rows[row]], codebook[index])
        # By latent, then distance, then index: candidates are in the order of latents and indices already.
        order = distance.argsort(stable=True)
        order = order[row[order].argsort(stable=True)]
        start = torch.searchsorted(row, torch.arange(len(rows), device=z.device))
        found[rows] = index[order[start.unsqueeze(1) + torch.arange(k, device=z.device)]]
    return found


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


@dataclass(frozen=True)
class Points:
    """A codebook as the product needs it, and the latents that go with it.

    cosine:     score z.c             of z = latent / its largest entry and c = unit codeword - centre
    euclidean:  score z.c - |c|^2 / 2 of z = latent / scale - centre    and c = codeword / scale - centre

    Subtracting the centre changes all scores of a latent alike, so their order stays, and codewords that lie close
    together keep more digits. The rounding of a score is at most g |z||c|, Euclidean g (|z||c| + |c|^2 / 2), where g
    counts the roundings of a product with so many columns, twice to be safe. Hence a column g |c| for one |z|; the
    other part is in the column -|c|^2 / 2, which stands for one of 1.
    """

    metric: str
    codewords: Tensor  # (tiles, tile, columns); the last codeword is repeated until the last tile is full
    errors: Tensor  # (tiles, 1 or 2): the largest error of a tile's scores for 1 in the latents' last columns
    centre: Tensor  # (d,) float64
    scale: float  # a power of two

    @classmethod
    def of(cls, codebook: Tensor, metric: str, dtype: torch.dtype) -> Points:
        """Prepare a finite codebook (V, d) for products in ``dtype``."""
        v, d = codebook.shape
        tile = 16
        while tile < 64 and tile * tile < v:
            tile *= 2
        tiles, columns = -(-v // tile), d + (1 if metric == "cosine" else 2)
        largest = codebook.abs().amax().double().clamp_min(TINY).item()
        scale = 1.0 if metric == "cosine" else 2.0 ** math.frexp(largest)[1]
        sample = _scaled(codebook[:: max(1, v // 1024)], metric, scale)
        centre = sample.median(dim=0).values  # a median, so that no far codeword drags it along

        g = (columns + 5) * torch.finfo(dtype).eps
        codewords = codebook.new_empty(tiles * tile, columns, dtype=dtype)
        errors = codebook.new_empty(tiles * tile, columns - d, dtype=dtype)
        for start in range(0, v, CONVERTED):
            rows = slice(start, min(start + CONVERTED, v))
            c = _scaled(codebook[rows], metric, scale) - centre
            length = c.norm(dim=1)
            codewords[rows, :d] = c
            if metric == "euclidean":
                codewords[rows, d] = length.square() * ((g - 1) / 2)
                errors[rows, 0] = length.square() * (g / 2)
            else:  # unit rows are rounded to float64, and so are their distances
                length += 4 * (d + 3) * EPS / g
            codewords[rows, -1] = errors[rows, -1] = length * g
        codewords[v:], errors[v:] = codewords[v - 1], errors[v - 1]
        return cls(metric, codewords.view(tiles, tile, -1), errors.view(tiles, tile, -1).amax(dim=1), centre, scale)

    def latents(self, rows: Tensor) -> tuple[Tensor, Tensor | float]:
        """Latents (N, d) as the product needs them: (N, columns); and what else, (N,), a score may be off by.

        That is underflow, and what float64 rounds off a squared distance, so that distances which float64 cannot tell
        apart are compared as equal ones.
        """
        dtype = self.codewords.dtype
        underflow = 16 * self.codewords.shape[2] * torch.finfo(dtype).tiny
        if self.metric == "cosine":
            z = rows.to(torch.promote_types(rows.dtype, dtype))
            z = (z / z.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)).to(dtype)
            return torch.cat([z, z.norm(dim=1, keepdim=True)], dim=1), underflow
        z = _scaled(rows, self.metric, self.scale) - self.centre
        length = z.norm(dim=1, keepdim=True)
        shrink = length.clamp_min(1).reciprocal()  # of all columns, since only their relation counts
        rounding = 4 * (z.shape[1] + 2) * EPS * length * (length * shrink) + underflow
        return torch.cat([z * shrink, shrink, length * shrink], dim=1).to(dtype), rounding.squeeze(1).to(dtype)

    def distance(self, latents: Tensor, codewords: Tensor) -> Tensor:
        """The squared distance (N,) between rows of (N, d) and (N, d) in float64, summed term by term.

        Cosine: of unit rows; those of zero are at a right angle to everything.
        """
        z, c = (_scaled(rows, self.metric, self.scale) for rows in (latents, codewords))
        distance = z.new_zeros(len(z))
        for difference in (z - c).T:
            distance += difference.square()
        if self.metric == "cosine":
            distance.masked_fill_(~(z.any(dim=1) & c.any(dim=1)), 2.0)
        return distance


def _scaled(rows: Tensor, metric: str, scale: float) -> Tensor:
    """Rows as float64, where nothing that was float32 is rounded if the metric is Euclidean, nor can overflow."""
    return unit(rows) if metric == "cosine" else (rows.double() / scale).clamp(-(2.0**500), 2.0**500)
