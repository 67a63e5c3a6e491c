"""The search on the sphere in 3 and 4 dimensions that leaves out codewords too far away, for large codebooks on a GPU.

Codewords and latents are sorted along a curve that fills the sphere, so that a tile of codewords and a block of latents
are each small patches of it. A block looks first at the tile where its own middle lies, which gives a distance that no
nearest codeword exceeds, and from then on only at tiles whose box is no further from the block's box. The products, and
what is settled exactly, are those of `gsqtok.search.triton`.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsqtok.search.launches import Launch, Launches
from gsqtok.search.triton import (
    SLOTS,
    Plan,
    _group_maxima,
    _keep,
    _largest,
    _latent_parts,
    _lengths,
    _prepare,
    _settle,
    _sizes,
    _slack,
    _store_slots,
)

BLOCK = 512
ROWS, CODEWORDS = 64, 256  # of a block, of a tile
CHUNK = 64  # boxes that are looked at together
EDGE = tl.constexpr(1e-6)  # of boxes: more than float32 rounds
CLOSE = tl.constexpr(1.00002)  # factor of squared distances likewise


def pays(latents: Tensor, codebook: Tensor, metric: str) -> bool:
    """Whether this is no slower than a look at all codewords, as measured by `benchmarks/eager.py` on an H200."""
    (n, d), v = latents.shape[-2:], codebook.shape[-2]
    if metric != "cosine" or d not in (3, 4) or codebook.ndim > 2 or n < 1 << 14 or v < 1 << 16:
        return False
    return n * v >= 1 << (32 if d == 3 else 34)


def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """As `triton.nearest` by angle, for latents (N, d) and a codebook (V, d) with d 3 or 4."""
    shapes = latents.shape, codebook.shape, latents.stride(), codebook.stride(), latents.dtype, codebook.dtype
    before, after = _launches(*shapes)
    cells = [rows.new_empty(len(rows), dtype=torch.int16) for rows in (latents, codebook)]
    before(latents, codebook, *cells)
    keys_z, order_z = torch.sort(cells[0], stable=True)
    keys_c, order_c = torch.sort(cells[1], stable=True)
    found = torch.empty_like(order_z)
    after(latents, codebook, keys_z, order_z, keys_c, order_c, found)
    return found


@lru_cache(maxsize=256)
def _launches(
    latents: tuple[int, ...], codebook: tuple[int, ...], strides: tuple[int, ...], codebook_strides: tuple[int, ...],
    *dtypes: torch.dtype,
) -> tuple[Launches, Launches]:  # fmt: skip
    """The kernels before the sorts and behind them, for tensors of these shapes, strides and dtypes."""
    (n, d), v = latents, codebook[0]
    tiles = -(-v // CODEWORDS)
    splits = max(-(-tiles // 512), min((1 << 14) // n, max(1, tiles // 64)), 1)
    plan = Plan(ROWS, CODEWORDS, min(3, 16 // d), splits, warps=4, stages=2)
    inner, depth, tiles, tiles_a_split, splits, columns, settled, id_bits = _sizes(plan, v, d, False)
    slack, taken = _slack(inner, id_bits)
    padded = tiles * CODEWORDS
    arrays = {
        "z": (torch.float32, n * d), "c": (torch.float32, v * d),
        "half": (torch.float16, padded * inner), "exact": (torch.float32, padded * depth),
        "inverse": (torch.float64, padded), "error": (torch.float32, tiles), "margin": (torch.float32, n),
        "boxes": (torch.float32, tiles * 8), "slots": (torch.int32, splits * SLOTS * n * 4),
    }  # fmt: skip
    shape = {"D": d, "DEPTH": depth, "EUCLIDEAN": False, "BN": CODEWORDS}
    parts = {"D": d, "DP": 4, "K": inner, "TERMS": plan.terms}

    def blocks(rows: int) -> tuple[int, ...]:
        return (-(-rows // BLOCK),)

    before = [
        Launch(_cells, blocks(rows), (name, *of, f"cells_{name}", rows), {"D": d, "BM": BLOCK})
        for name, of, rows in (("latents", strides, n), ("codebook", codebook_strides, v))
    ]
    after = [
        Launch(_gather, blocks(n), ("latents", *strides, "order_z", "z", n), {"D": d, "BM": BLOCK}),
        Launch(_gather, blocks(v), ("codebook", *codebook_strides, "order_c", "c", v), {"D": d, "BM": BLOCK}),
        Launch(_boxes, (tiles,), ("c", "boxes", v), {"D": d, "BN": CODEWORDS}),
        Launch(
            _prepare, (tiles, 1), ("c", 0, d, 1, "error", "half", "exact", "inverse", "error", v), shape | parts
        ),
        Launch(
            _search, (-(-n // ROWS), splits),
            (
                "z", "keys_z", "keys_c", "boxes", "half", "error", "margin", "slots", n, v, tiles, tiles_a_split,
                v.bit_length(), slack,
            ),
            {"BN": CODEWORDS, "BM": ROWS, "ID_BITS": id_bits, "CHUNK": CHUNK, **parts},
        ),
        Launch(
            _settle, (-(-n // settled), 1),
            (
                "z", d, 0, 1, "exact", "inverse", "margin", "slots", "order_z", "order_c", "found", n, v, tiles,
                tiles_a_split, splits, taken,
            ),
            shape | {"BM": settled, "COLUMNS": columns, "ID_BITS": id_bits, "ORDERED": True, "num_stages": 1},
        ),
    ]  # fmt: skip
    given = ("latents", "codebook", "keys_z", "order_z", "keys_c", "order_c", "found")
    return Launches(("latents", "codebook", "cells_latents", "cells_codebook"), {}, before), Launches(
        given, arrays, after
    )


@triton.jit(do_not_specialize=["N"])
def _gather(rows, stride_n, stride_d, order, gathered, N, D: tl.constexpr, BM: tl.constexpr):
    """Rows in order, float32."""
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = place < N
    row = tl.load(order + place, mask=inside, other=0)
    for k in tl.static_range(D):
        x = tl.load(rows + row * stride_n + k * stride_d, mask=inside, other=0.0)
        tl.store(gathered + place.to(tl.int64) * D + k, x.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["N"])
def _cells(rows, stride_n, stride_d, keys, N, D: tl.constexpr, BM: tl.constexpr):
    """The cell of each row's direction: a face of the cube, and on it the place along a Z-shaped curve; 15 bits."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < N
    source = rows + row.to(tl.int64) * stride_n
    largest = tl.zeros((BM,), tl.float32)
    face = tl.zeros((BM,), tl.int32)
    for k in tl.static_range(D):
        x = tl.load(source + k * stride_d, mask=inside, other=0.0).to(tl.float32)
        more = tl.abs(x) > largest
        largest = tl.where(more, tl.abs(x), largest)
        face = tl.where(more, 2 * k + (x > 0).to(tl.int32), face)
    key = tl.zeros((BM,), tl.int32)
    place = tl.zeros((BM,), tl.int32)  # among the coordinates that are not the largest
    BITS: tl.constexpr = 12 // (D - 1)
    for k in tl.static_range(D):
        x = tl.load(source + k * stride_d, mask=inside, other=0.0).to(tl.float32)
        w = tl.minimum(tl.maximum(x / tl.where(largest > 0, largest, 1.0), -1.0), 1.0)
        w = w * (1.2734 - 0.2734 * tl.abs(w))  # nearly the angle, so that cells are about equal
        q = tl.minimum(((w * 0.5 + 0.5) * (1 << BITS)).to(tl.int32), (1 << BITS) - 1)
        spread = tl.zeros((BM,), tl.int32)
        for bit in tl.static_range(BITS):
            spread |= ((q >> bit) & 1) << (bit * (D - 1))
        own = (face >> 1) == k
        key |= tl.where(own, 0, spread << place)
        place += tl.where(own, 0, 1)
    tl.store(keys + row, (face * 4096 + key).to(tl.int16), mask=inside)


@triton.jit
def _box(source, inside, D: tl.constexpr):
    """The least and the largest coordinates (4,) of rows (B,) scaled to length 1, a little wider."""
    dims = tl.arange(0, 4)
    z = tl.load(source[:, None] + dims[None, :], mask=inside[:, None] & (dims < D)[None, :], other=0.0).to(tl.float64)
    length = tl.sqrt(tl.sum(z * z, axis=1))[:, None]
    z = (z / tl.where(length > 0, length, 1.0)).to(tl.float32)
    low = tl.min(tl.where(inside[:, None], z, 2.0), axis=0) - EDGE
    return low, tl.max(tl.where(inside[:, None], z, -2.0), axis=0) + EDGE


@triton.jit(do_not_specialize=["V"])
def _boxes(codebook, boxes, V, D: tl.constexpr, BN: tl.constexpr):
    """Of each tile the least coordinates, then the largest."""
    v = tl.program_id(0) * BN + tl.arange(0, BN)
    low, high = _box(codebook + v.to(tl.int64) * D, v < V, D)
    place = boxes + tl.program_id(0) * 8 + tl.arange(0, 4)
    tl.store(place, low)
    tl.store(place + 4, high)


@triton.jit
def _apart(boxes, number, last_tile, low, high, D: tl.constexpr):
    """The squared distance of the tiles' boxes from another box."""
    dims = tl.arange(0, 4)
    box = boxes + number[:, None] * 8 + dims[None, :]
    there = (number < last_tile)[:, None] & (dims < D)[None, :]
    before = tl.load(box, mask=there, other=0.0) - high[None, :]
    behind = low[None, :] - tl.load(box + 4, mask=there, other=0.0)
    gap = tl.where(there, tl.maximum(tl.maximum(before, behind), 0.0), 0.0)
    return tl.sum(gap * gap, axis=1)


@triton.jit
def _tile(a, half, tile, shift, BM: tl.constexpr, BN: tl.constexpr, K: tl.constexpr):
    b = tl.load(half + (tile * BN + tl.arange(0, BN)).to(tl.int64)[None, :] * K + tl.arange(0, K)[:, None])
    s = tl.dot(a, b)
    return _group_maxima(s.to(tl.int32, bitcast=True), BM, BN).to(tl.float32, bitcast=True) - shift[:, None]


@triton.jit
def _tile_of(target, keys, V, steps, BN: tl.constexpr):
    """The tile in which a key would be."""
    below = 0
    above = V
    for _ in range(steps):
        at = (below + above) // 2
        less = (below < above) & (tl.load(keys + tl.minimum(at, V - 1)).to(tl.int32) < target)
        above = tl.where(less, above, at)
        below = tl.where(less, at + 1, below)
    return tl.minimum(below, V - 1) // BN


@triton.jit(do_not_specialize=["N", "V", "tiles", "tiles_a_split", "steps"])
def _search(
    latents, keys_z, keys_c, boxes, half, error, margins, slots, N, V, tiles, tiles_a_split, steps, slack,
    D: tl.constexpr, BN: tl.constexpr, DP: tl.constexpr, K: tl.constexpr, TERMS: tl.constexpr,
    BM: tl.constexpr, ID_BITS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """As the search of all tiles, of those alone that may hold the nearest codeword of a latent of the block."""
    ID: tl.constexpr = (1 << ID_BITS) - 1
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < N
    source = latents + row.to(tl.int64) * D
    split = tl.program_id(1)
    length, invalid = _lengths(source, 1, inside, D, DP)
    a, miss = _latent_parts(source, 1, inside, length, length, D, False, K, TERMS)
    margin = tl.where(invalid, float("inf"), slack + 2.002 * _largest(error, tiles))
    if TERMS == 1:
        margin += 2.002 * miss
    margin = tl.where((length == 0) & (margin < float("inf")), 0.0, margin)
    shift = 1.0 + margin
    tl.store(margins + row, margin, mask=inside & (split == 0))
    open = inside & (margin > 0) & (margin < float("inf"))
    low, high = _box(source, open, D)

    middle = tl.minimum(tl.program_id(0) * BM + BM // 2, N - 1)
    start = _tile_of(tl.load(keys_z + middle).to(tl.int32), keys_c, V, steps, BN)
    top = tl.max(_tile(a, half, start, shift, BM, BN, K), axis=1)
    bound = tl.max(tl.where(open, -2.0 * top, -1.0), axis=0) * CLOSE  # squared distance, or more by the margin

    first = tl.full((BM, 4), -(2**31), tl.int32)
    second = first
    third = first
    fourth = first
    first_tile = split * tiles_a_split
    last_tile = tl.minimum(first_tile + tiles_a_split, tiles)
    for phase in range(2):  # boxes that meet the block's come first, as they make the bound small
        for chunk in range(first_tile, last_tile, CHUNK):
            number = chunk + tl.arange(0, CHUNK)
            apart = _apart(boxes, number, last_tile, low, high, D)
            wanted = (number < last_tile) & (apart <= bound) & ((apart > 0) == (phase > 0))
            tile = tl.min(tl.where(wanted, number, 0x7FFFFFFF), axis=0)
            while tile < last_tile:
                best = _tile(a, half, tile, shift, BM, BN, K)
                packed = ((best.to(tl.int32, bitcast=True) ^ 0x7FFFFFFF) & ~ID) | (tile - first_tile)
                first, second, third, fourth = _keep(first, second, third, fourth, packed)
                top = tl.maximum(top, tl.max(best, axis=1))
                bound = tl.minimum(bound, tl.max(tl.where(open, -2.0 * top, -1.0), axis=0) * CLOSE)
                wanted &= (number > tile) & (apart <= bound)
                tile = tl.min(tl.where(wanted, number, 0x7FFFFFFF), axis=0)

    place = slots + (split * 4 * N.to(tl.int64) + row.to(tl.int64)[:, None]) * 4 + tl.arange(0, 4)[None, :]
    _store_slots(place, N, inside, first, second, third, fourth)
