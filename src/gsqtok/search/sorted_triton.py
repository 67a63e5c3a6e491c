"""The search on a line or a circle on a GPU: the steps of sorted.py in one kernel each side of the sort.

What they return is defined in sorted.py; here latents with NaN or infinity get -1, and all do if the codebook has any.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsqtok.search.launches import Launch, Launches

BLOCK = 512
FULL = tl.constexpr(1 << 30)  # half a circle


def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the codeword of nearest value (d = 1) or angle (d = 2), int64 (N,), for (N, d) and (V, d).

    For (N, G, d) and (G, V, d): (N, G), all groups at once. A sort's time goes by the bits of what is sorted. On a line
    those are the values themselves; on a circle they are 32 bits of each angle, and few codewords are left to be put in
    order by all 64.
    """
    if codebook.ndim == 2:
        return nearest(latents.unsqueeze(1), codebook.unsqueeze(0)).squeeze(1)
    shapes = latents.shape, codebook.shape, latents.stride(), codebook.stride(), latents.dtype, codebook.dtype
    before, after = _launches(*shapes)
    found = latents.new_empty(latents.shape[:-1], dtype=torch.int64)
    if before is None:
        keys = codebook.select(2, 0).contiguous()  # which the result of a sort follows in memory
    else:
        keys = codebook.new_empty(codebook.shape[:2], dtype=torch.int32)
        before(codebook, keys)
    after(latents, codebook, *torch.sort(keys, stable=True), found)
    return found


@lru_cache(maxsize=256)
def _launches(
    latents: tuple[int, ...], codebook: tuple[int, ...], strides: tuple[int, ...], codebook_strides: tuple[int, ...],
    *dtypes: torch.dtype,
) -> tuple[Launches | None, Launches]:  # fmt: skip
    """The kernels before the sort and behind it, for tensors of these shapes, strides and dtypes."""
    (n, groups, d), v = latents, codebook[1]
    blocks, steps = (-(-v // BLOCK), groups), v.bit_length()
    given = ("latents", "codebook", "keys", "order", "found")
    book: tuple[str | int, ...] = ("codebook", *codebook_strides)

    def look_up(keys: str, order: str) -> Launch:
        arguments = ("latents", *strides, *book, keys, order, "found", n, v, steps)
        return Launch(_look_up, (-(-n // BLOCK), groups), arguments, {"D": d, "BM": BLOCK})

    if d == 1:
        return None, Launches(given, {}, [look_up("keys", "order")])
    turns = Launch(_turns, blocks, (*book, "keys", v), {"BM": BLOCK})
    settle = Launch(_settle, blocks, (*book, "keys", "order", "turns", "settled", v, steps), {"BM": BLOCK})
    arrays = {"turns": (torch.float64, groups * v), "settled": (torch.int32, groups * v)}
    return Launches(("codebook", "keys"), {}, [turns]), Launches(given, arrays, [settle, look_up("turns", "settled")])


@triton.jit
def _point(rows, stride_n, stride_d, index, inside, D: tl.constexpr):
    """Rows as float64 (x, y), scaled to a largest entry of 1 (a line: x as it is); and which are not finite."""
    place = rows + index.to(tl.int64) * stride_n
    x = tl.load(place, mask=inside, other=1.0).to(tl.float64)
    bad = x - x != 0.0
    y = x * 0.0
    if D == 2:
        y = tl.load(place + stride_d, mask=inside, other=1.0).to(tl.float64)
        bad |= y - y != 0.0
        largest = tl.maximum(tl.abs(x), tl.abs(y))
        largest = tl.where(largest > 0, largest, 1.0)
        x = x / largest
        y = y / largest
    return x, y, bad


@triton.jit
def _turn(x, y):
    """A number in (-2, 2] that grows with the angle of (x, y) from -pi to pi; infinity for (0, 0)."""
    sum = tl.abs(x) + tl.abs(y)
    slope = y / tl.where(sum > 0, sum, 1.0)
    turn = tl.where(x >= 0, slope, tl.where(y >= 0, 2 - slope, -2 - slope))
    turn = tl.where(turn <= -2, 2.0, turn)
    return tl.where(sum > 0, turn, float("inf"))


@triton.jit(do_not_specialize=["V"])
def _turns(codebook, stride_g, stride_v, stride_d, keys, V, BM: tl.constexpr):
    """The turn of each codeword to 32 bits; behind all others (0, 0), then those with NaN or infinity."""
    codebook += tl.program_id(1).to(tl.int64) * stride_g
    keys += tl.program_id(1).to(tl.int64) * V
    v = tl.program_id(0) * BM + tl.arange(0, BM)
    x, y, bad = _point(codebook, stride_v, stride_d, v, v < V, 2)
    turn = _turn(x, y)
    zero = turn == float("inf")
    key = tl.floor(tl.where(zero | bad, 0.0, turn) * (FULL // 2)).to(tl.int32)
    tl.store(keys + v, tl.where(bad, FULL + 2, tl.where(zero, FULL + 1, key)), mask=v < V)


@triton.jit(do_not_specialize=["V", "steps"])
def _settle(
    codebook, stride_g, stride_v, stride_d, keys, order, turns, settled, V, steps, BM: tl.constexpr
):  # fmt: skip
    """Turns in order and whose they are, from the order of their first 32 bits: of equal ones the lowest index first.

    NaN stands for the turn of those with NaN or infinity.
    """
    number = tl.program_id(1).to(tl.int64)
    codebook += number * stride_g
    keys += number * V
    order += number * V
    v = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = v < V
    key = tl.load(keys + v, mask=inside, other=FULL + 2)
    index = tl.load(order + v, mask=inside, other=0)
    x, y, bad = _point(codebook, stride_v, stride_d, index, inside, 2)
    turn = tl.where(bad, float("nan"), _turn(x, y))
    tied = (v > 0) & (tl.load(keys + tl.maximum(v - 1, 0), mask=inside, other=0) == key)
    tied |= (v < V - 1) & (tl.load(keys + v + 1, mask=v < V - 1, other=0) == key)
    tied &= inside & (key <= FULL)
    place = v
    if tl.max(tied.to(tl.int32), axis=0) > 0:
        first = _first_not_below(keys, key, V, steps)
        end = tl.where(tied, _first_not_below(keys, key + 1, V, steps), first)
        ahead = first
        for step in range(tl.max(end - first, axis=0)):
            open = first + step < end
            other = tl.load(order + first + step, mask=open, other=0)
            x, y, _ = _point(codebook, stride_v, stride_d, other, open, 2)
            theirs = _turn(x, y)
            ahead += (open & ((theirs < turn) | ((theirs == turn) & (other < index)))).to(tl.int32)
        place = tl.where(tied, ahead, v)
    tl.store(turns + number * V + place, turn, mask=inside)
    tl.store(settled + number * V + place, index.to(tl.int32), mask=inside)


@triton.jit
def _first_not_below(keys, target, V, steps):
    """Position of the first key that is not less than the target, V if none."""
    low = tl.zeros_like(target).to(tl.int32)
    high = low + V
    for _ in range(steps):
        middle = (low + high) // 2
        open = low < high
        below = open & (tl.load(keys + middle, mask=open, other=0) < target)
        high = tl.where(below, high, middle)
        low = tl.where(below, middle + 1, low)
    return low


@triton.jit
def _arc(x, y, codebook, stride_v, stride_d, index, D: tl.constexpr):
    """A number that grows with the angle between (x, y) and a codeword, and their inner product."""
    cx, cy, _ = _point(codebook, stride_v, stride_d, index, index >= 0, D)
    product = x * cx + y * cy
    return _turn(product, tl.abs(x * cy - y * cx)), product


@triton.jit(do_not_specialize=["N", "V", "steps"])
def _look_up(
    latents, stride_n, latent_stride_g, latent_stride_d, codebook, stride_g, stride_v, stride_d, keys, order, found,
    N, V, steps,
    D: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Each latent's neighbours among the sorted keys, and the nearer of them."""
    number = tl.program_id(1).to(tl.int64)
    latents += number * latent_stride_g
    codebook += number * stride_g
    keys += number * V
    order += number * V
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < N
    x, y, invalid = _point(latents, stride_n, latent_stride_d, row, inside, D)
    last_key = tl.load(keys + (V - 1) + row * 0).to(tl.float64)
    invalid |= last_key != last_key
    if D == 1:  # infinity is at either end
        first_key = tl.load(keys + row * 0).to(tl.float64)
        invalid |= (last_key - last_key != 0.0) | (first_key - first_key != 0.0)

    target = x if D == 1 else _turn(x, y)
    after = _first_not_below(keys, target, V, steps)
    before = after - 1
    if D == 1:
        before = tl.maximum(before, 0)
        after = tl.minimum(after, V - 1)
    else:
        # Zero codewords have the key infinity; the first of them, if any, is where the others end.
        count = V
        if tl.max(last_key, axis=0) == float("inf"):
            count = tl.min(_first_not_below(keys, tl.full((1,), float("inf"), tl.float64), V, steps), axis=0)
        first_zero = tl.where(count < V, tl.load(order + tl.minimum(count, V - 1)), V)
        last = tl.maximum(count - 1, 0)
        before = tl.where(after == 0, last, before)
        after = tl.where(after > last, 0, after)  # the seam: behind the last comes the first
    key_before = tl.load(keys + before).to(tl.float64)
    repeated = (before > 0) & (tl.load(keys + tl.maximum(before - 1, 0)) == key_before)
    if tl.max(repeated.to(tl.int32), axis=0) > 0:  # first of the equals: the lowest index
        before = tl.where(repeated, _first_not_below(keys, key_before, V, steps), before)

    first = tl.load(order + before)
    second = tl.load(order + after)
    if D == 1:
        to_first = tl.abs(target - key_before)
        to_second = tl.abs(target - tl.load(keys + after).to(tl.float64))
    else:
        to_first, first_product = _arc(x, y, codebook, stride_v, stride_d, first, D)
        to_second, second_product = _arc(x, y, codebook, stride_v, stride_d, second, D)
    nearest = tl.where(to_first < to_second, first, second)
    nearest = tl.where(to_first == to_second, tl.minimum(first, second), nearest)
    if D == 2:  # the similarity to a zero codeword is 0, and that of a zero latent to every codeword
        product = tl.where(nearest == first, first_product, second_product)
        nearest = tl.where((product < 0) & (first_zero < V), first_zero, nearest)
        nearest = tl.where(product == 0, tl.minimum(nearest, first_zero), nearest)
        nearest = tl.where((x == 0) & (y == 0), 0, nearest)
    place = found + row.to(tl.int64) * tl.num_programs(1) + number
    tl.store(place, tl.where(invalid, -1, nearest), mask=inside)
