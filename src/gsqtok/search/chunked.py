"""The nearest codewords on any device, in blocks of a matrix product, never holding all N x V scores.

1. A score is a product that grows as the distance falls. Two more columns of the product add the largest error that
   the score can have, so that what comes out is an upper bound. Of each block only the largest bound of every tile of
   codewords is kept.
2. The k-th largest of the tiles' lower bounds is the threshold: what stays below it is not among the k nearest.
3. At k = 1 one codeword alone reaches the threshold for all but one latent in thousands, and that is the nearest. In
   all other cases the codewords that reach it are compared by the distances themselves, in float64; after another
   product in float64, if in float32 it leaves too many.

An error is bounded by the lengths of the very latent and codeword that are multiplied. A few far codewords therefore
cost the others no precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsqtok.search.codebook import Codebook
from gsqtok.search.space import Space

CODEWORDS = 2048  # codewords a block
SCORES = 1 << 19  # that a CPU's thread computes before their maxima are taken: 2 MiB, which stay in its cache
CONVERTED = 1 << 13  # codewords converted at once
FEW = 8  # at most one tile in so many is compared by distances after a product in float32
EPS = torch.finfo(torch.float64).eps


def nearest(latents: Tensor, codebook: Codebook, metric: str, k: int = 1) -> Tensor:
    """Indices of the k nearest codewords, int64 (N,) or if k > 1 (N, k), of finite latents and codebook, V >= k.

    Ordered by float64 distance, equal ones by index. Settings that allow TF32 or bfloat16 in matrix products change
    nothing. On CUDA it waits for the device, to learn how many candidates there are.
    """
    points = codebook.prepared(Points.of, metric, product_dtype(latents))
    tiles, tile, columns = points.codewords.shape
    rows = max(1, _at_once(latents) // max(tiles, tile * columns))
    if latents.shape[0] <= rows:
        return _search(points, codebook, latents, k)
    return torch.cat([_search(points, codebook, block, k) for block in torch.split(latents, rows)])


def product_dtype(latents: Tensor) -> torch.dtype:
    """The type of the products: float32 where torch does not round it, on a CPU."""
    return torch.float32 if latents.device.type == "cpu" and _float32_is_kept() else torch.float64


def _at_once(rows: Tensor) -> int:
    """How many numbers an intermediate result may have."""
    return 1 << 23 if rows.is_cuda else 1 << 20


def _search(points: Points, codebook: Codebook, latents: Tensor, k: int) -> Tensor:
    z, slack = points.latents(latents)
    maxima, tiles = _maxima(points, z), points.codewords.shape[0]
    lower = torch.addmm(maxima, points.errors, z[-points.errors.shape[1] :], alpha=-2)
    threshold = lower.amax(dim=0) if k == 1 else lower.topk(min(k, tiles), dim=0).values[-1]
    threshold = threshold - slack if k <= tiles else torch.full_like(threshold, -torch.inf)
    near = maxima >= threshold
    if k > 1:
        return _settle(points, codebook, latents, z, threshold, near, k)

    found = points.places[:, :tiles] @ near.to(points.places.dtype)
    # Where in its tile: computed again for the one tile, which takes less than a second look at all scores.
    first = (found[2].long() // points.codewords.shape[1]).clamp_max(tiles - 1)
    scores = torch.bmm(points.codewords.index_select(0, first), z.T.contiguous().unsqueeze(2))
    found += points.places[:, tiles:] @ (threshold <= scores.squeeze(2).T).to(found.dtype)
    several = found[:2].amax(dim=0) > 1
    indices = found[2].long()
    if several.any():
        rows = several.nonzero().flatten()
        if points.space.metric == "cosine":  # a zero latent has the same similarity to all
            zero = z[-1, rows] == 0
            indices[rows[zero]] = 0
            rows = rows[~zero]
        indices[rows] = _settle(points, codebook, latents[rows], z[:, rows], threshold[rows], near[:, rows], 1)
    return indices


def _maxima(points: Points, z: Tensor) -> Tensor:
    """The largest product of each latent (c, n) with a tile's codewords: (tiles, n)."""
    (tiles, tile, _), n = points.codewords.shape, z.shape[1]
    blocks = torch.split(points.codewords.flatten(0, 1), CODEWORDS)
    maxima = z.new_empty(tiles, n)
    # A batch of small products: each thread has some of its own, whose scores stay in its cache.
    latents = 4096 if z.is_cuda else 128
    at_once = (
        latents if z.is_cuda else max(1, SCORES // blocks[0].shape[0] // latents) * latents * torch.get_num_threads()
    )
    scores = z.new_empty(blocks[0].shape[0] * min(at_once, n))
    edge = n - n % latents
    pieces = [(row, min(row + at_once, edge), latents) for row in range(0, edge, at_once)]
    for start, stop, latents in [*pieces, (edge, n, n - edge)] if edge < n else pieces:
        columns = z[:, start:stop].view(z.shape[0], -1, latents).transpose(0, 1)
        target = maxima[:, start:stop].view(tiles, -1, latents).transpose(0, 1)
        for number, block in enumerate(blocks):
            # Codewords down, latents across: the maximum over a tile is then one of whole vectors, not within them.
            product = scores[: block.shape[0] * (stop - start)].view(-1, block.shape[0], latents)
            torch.bmm(block.expand(product.shape[0], -1, -1), columns, out=product)
            product, first = product.view(product.shape[0], -1, tile, latents), number * CODEWORDS // tile
            torch.amax(product, dim=2, out=target[:, first : first + product.shape[1]])
    return maxima


def _settle(
    points: Points, codebook: Codebook, latents: Tensor, z: Tensor, threshold: Tensor, near: Tensor, k: int
) -> Tensor:
    """The k nearest of each latent's codewords that reach its threshold, by distances in float64.

    Args:
        points: the prepared codebook.
        codebook: as it was given.
        latents: (n, d), as they were given.
        z: (c, n), the same prepared.
        threshold: (n,).
        near: bool (tiles, n), the tiles in which a codeword reaches the threshold.
        k: how many; at least as many codewords reach the threshold.
    """
    _, tile, columns = points.codewords.shape
    if z.dtype == torch.float32 and near.sum() * FEW > near.numel():
        return _search(codebook.prepared(Points.of, points.space.metric, torch.float64), codebook, latents, k)
    found = torch.empty(len(latents), k, dtype=torch.int64, device=z.device)
    # Groups of latents, each with about as many products as may be at once.
    group = near.sum(dim=0).cumsum(dim=0) * (tile * columns) // _at_once(z)
    counts = torch.unique_consecutive(group, return_counts=True)[1].tolist()
    for rows in torch.split(torch.arange(len(latents), device=z.device), counts):
        row, within = near[:, rows].T.nonzero(as_tuple=True)
        scores = torch.bmm(points.codewords[within], z.T[rows[row]].unsqueeze(2)).squeeze(2)
        index = within.unsqueeze(1) * tile + torch.arange(tile, device=z.device)
        candidate = (scores >= threshold[rows[row]].unsqueeze(1)) & (index < len(codebook.rows))
        row, index = row.unsqueeze(1).expand_as(index)[candidate], index[candidate]
        distance = points.space.distance(latents[rows[row]], codebook.rows[index])
        # By latent, then distance, then index: candidates are in the order of latents and indices already.
        order = distance.argsort(stable=True)
        order = order[row[order].argsort(stable=True)]
        start = torch.searchsorted(row, torch.arange(len(rows), device=z.device))
        found[rows] = index[order[start.unsqueeze(1) + torch.arange(k, device=z.device)]]
    return found[:, 0] if k == 1 else found


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

    space: Space
    codewords: Tensor  # (tiles, tile, columns); the last codeword is repeated until the last tile is full
    errors: Tensor  # (tiles, 1 or 2): the largest error of a tile's scores for 1 in the latents' last columns
    centre: Tensor  # (d,) float64
    places: Tensor  # (3, tiles + tile): times what is near, the number of tiles, of places in a tile, and the index

    @classmethod
    def of(cls, codebook: Tensor, metric: str, dtype: torch.dtype) -> Points:
        """Prepare a finite codebook (V, d) for products in ``dtype``."""
        v, d = codebook.shape
        tile = 16
        while tile < 64 and 16 * tile * tile < v:
            tile *= 2
        tiles, columns = -(-v // tile), d + (1 if metric == "cosine" else 2)
        space = Space.of(codebook, metric)
        # A median, so that no far codeword drags it along.
        centre = space.points(codebook[:: max(1, v // 1024)]).median(dim=0).values

        g = (columns + 5) * torch.finfo(dtype).eps
        codewords = codebook.new_empty(tiles * tile, columns, dtype=dtype)
        errors = codebook.new_empty(tiles * tile, columns - d, dtype=dtype)
        for start in range(0, v, CONVERTED):
            rows = slice(start, min(start + CONVERTED, v))
            c = space.points(codebook[rows]) - centre
            length = c.norm(dim=1)
            codewords[rows, :d] = c
            if metric == "euclidean":
                codewords[rows, d] = length.square() * ((g - 1) / 2)
                errors[rows, 0] = length.square() * (g / 2)
            else:  # unit rows are rounded to float64, and so are their distances
                length += 4 * (d + 3) * EPS / g
            codewords[rows, -1] = errors[rows, -1] = length * g
        codewords[v:], errors[v:] = codewords[v - 1], errors[v - 1]
        errors = errors.view(tiles, tile, -1).amax(dim=1)
        # Whole numbers that the product must not round.
        places = codebook.new_zeros(3, tiles + tile, dtype=dtype if v < 1 << 24 else torch.float64)
        places[0, :tiles], places[1, tiles:] = 1, 1
        torch.arange(0, tiles * tile, tile, out=places[2, :tiles])
        torch.arange(tile, out=places[2, tiles:])
        return cls(space, codewords.view(tiles, tile, -1), errors, centre, places)

    def latents(self, rows: Tensor) -> tuple[Tensor, Tensor | float]:
        """Latents (N, d) as the product needs them: (columns, N); and what else, (N,), a score may be off by.

        That is underflow, and what float64 rounds off a squared distance, so that distances which float64 cannot tell
        apart are compared as equal ones.
        """
        dtype, columns = self.codewords.dtype, self.codewords.shape[2]
        z = rows.new_empty(columns, len(rows), dtype=dtype)
        underflow = 16 * columns * torch.finfo(dtype).tiny
        if self.space.metric == "cosine":
            wide = rows.T.to(torch.promote_types(rows.dtype, dtype), memory_format=torch.contiguous_format)
            point = torch.div(wide, wide.abs().amax(dim=0).clamp_min(torch.finfo(wide.dtype).tiny), out=z[:-1])
            torch.sqrt(point.square().sum(dim=0), out=z[-1])
            return z, underflow
        wide = self.space.points(rows).T - self.centre.unsqueeze(1)
        length = wide.square().sum(dim=0).sqrt()
        shrink = length.clamp_min(1).reciprocal()  # of all columns, since only their relation counts
        z[:-2], z[-2], z[-1] = wide * shrink, shrink, length * shrink
        rounding = 4 * (len(wide) + 2) * EPS * length * (length * shrink) + underflow
        return z, rounding.to(dtype)
