"""Triton kernels for what stands between convolutions, on tensors whose channels are innermost in memory (NHWC).

These stages only move data, so each is as few passes over it as can be: group normalisation with its activation reads
twice and writes once, forward and backward; of what is large only its input is kept for the backward pass.

Statistics are those of stretches of rows (a row is one position, all channels), merged by Chan's formula in a fixed
order: equal inputs give equal bits. All arithmetic is float32 whatever the type of the tensors.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 4096  # elements a tile: 32 for each of 128 threads, which is four loads of 16 bytes in half precision
SUMS_TILE = 2048  # where sums stay in registers: two or three float32 for each of 16 elements a thread
PROGRAMS = 2048  # tiles are shared out among no more programs than keep the largest GPUs busy several times over
STEPS = (4, 32)  # tiles that a program adds up before it does so over rows, at least and at most
WARPS = 4
MERGE_WARPS = 4

# ``do_not_specialize``: integers vary with image and batch, and each that is 1 or a multiple of 16 would otherwise
# have a kernel of its own.


class Shape(NamedTuple):
    """Sizes of the launches over (batch, rows, channels)."""

    batch: int
    channels: int
    rows: int
    splits: int  # programs that share the rows of a sample for sums
    steps: int  # tiles of each of them
    sums: dict[str, int]  # a tile of those
    once: dict[str, int]  # a tile where all is read and written once
    twice: dict[str, int]  # likewise, of two tensors with some arithmetic

    def programs(self, tile: dict[str, int]) -> tuple[int, int]:
        """One for each tile."""
        return _ceil(self.rows, tile["BR"]), self.batch


def shape_of(x: Tensor) -> Shape:
    """Of the launches over x (B, C, H, W)."""
    batch, channels, height, width = x.shape
    return _shape(batch, channels, height * width, TILE, SUMS_TILE, PROGRAMS)


@lru_cache(1024)
def _shape(batch: int, channels: int, rows: int, tile: int, sums_tile: int, programs: int) -> Shape:
    padded = _power_of_2(channels)
    sums, once, twice = (
        {"C": channels, "CP": padded, "BR": max(1, elements // padded)} for elements in (sums_tile, tile, tile // 2)
    )
    tiles = _ceil(rows, sums["BR"])
    least, most = STEPS
    steps = min(most, max(least, tiles * batch // programs // least * least))
    return Shape(batch, channels, rows, _ceil(tiles, steps), steps, sums, once, twice)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def innermost(x: Tensor) -> Tensor:
    """X with channels innermost."""
    return x.contiguous(memory_format=torch.channels_last)


def _empty(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def _floats(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.float32)


class GroupNorm(torch.autograd.Function):
    """``silu(group_norm(x + shift) * weight + bias)`` of x (B, C, H, W).

    weight and bias are (C,), or (B, C) for each sample's own; shift is (C,) or None; dtype is that of the result. Kept
    for the backward pass, in float32: mean and 1 / deviation, both (B, groups), and the mean of each channel after
    normalisation, (B, C).
    """

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, silu, shift, dtype):
        x, weight, bias = innermost(x), weight.contiguous(), bias.contiguous()
        s, out = shape_of(x), _empty(x, x.shape, dtype)
        partial = _floats(x, s.batch, s.splits, 2, s.channels)
        mean, inverse = (_floats(x, s.batch, groups) for _ in range(2))
        centre, scale, offset = (_floats(x, s.batch, s.channels) for _ in range(3))
        _statistics[(s.splits, s.batch)](x, partial, s.rows, s.steps, **s.sums, num_warps=WARPS)
        _merge_statistics[(groups, s.batch)](
            partial, weight, bias, weight if shift is None else shift, mean, inverse, centre, scale, offset,
            s.rows, s.splits, s.steps * s.sums["BR"], eps, weight.ndim - 1,
            s.channels, groups, int(shift is not None), **_group_tile(s.channels // groups), num_warps=MERGE_WARPS,
        )  # fmt: skip
        _normalise[s.programs(s.once)](x, out, scale, offset, s.rows, s.batch, SILU=silu, **s.once, num_warps=WARPS)
        ctx.save_for_backward(x, weight, bias, shift, mean, inverse, centre)
        ctx.groups, ctx.silu = groups, silu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, bias, shift, mean, inverse, centre = ctx.saved_tensors
        groups, silu, s, grad = ctx.groups, ctx.silu, shape_of(x), innermost(grad)
        out, partial = _empty(x, x.shape, x.dtype), _floats(x, s.batch, s.splits, 2, s.channels)
        d_weight, d_bias, d_shift = (_floats(x, s.batch, s.channels) for _ in range(3))
        means = _floats(x, s.batch, groups, 2)
        parameters = (weight, bias, weight if shift is None else shift, mean, inverse)
        kind = (weight.ndim - 1, int(shift is not None))
        _gradient_sums[(s.splits, s.batch)](
            grad, x, *parameters, partial, s.rows, s.steps, *kind, SILU=silu, G=groups, **s.sums, num_warps=WARPS
        )
        _merge_gradient_sums[(groups, s.batch)](
            partial, weight, inverse, centre, means, d_weight, d_bias, d_shift, s.rows, s.splits, weight.ndim - 1,
            s.channels, groups, **_group_tile(s.channels // groups), num_warps=MERGE_WARPS,
        )  # fmt: skip
        _gradient[s.programs(s.twice)](
            grad, x, *parameters, means, out, s.rows, s.batch, *kind, SILU=silu, G=groups, **s.twice,
            num_warps=WARPS,
        )  # fmt: skip
        if weight.ndim == 1:
            d_weight, d_bias = d_weight.sum(0), d_bias.sum(0)
        of_shift = None if shift is None else d_shift.sum(0).to(shift.dtype)
        return out, d_weight.to(weight.dtype), d_bias.to(bias.dtype), None, None, None, of_shift, None


class Add(torch.autograd.Function):
    """x + y + bias, the bias (C,) for each channel."""

    @staticmethod
    def forward(ctx, x, y, bias):
        x, y = innermost(x), innermost(y)
        s, out = shape_of(x), _empty(x, x.shape, torch.promote_types(x.dtype, y.dtype))
        _add[s.programs(s.once)](x, y, bias, out, s.rows, **s.once, num_warps=WARPS)
        ctx.dtypes = x.dtype, y.dtype, bias.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, y, bias = ctx.dtypes
        return grad.to(x), grad.to(y), grad.sum((0, 2, 3), dtype=torch.float32).to(bias)


class Interleave(torch.autograd.Function):
    """Four images side by side in the channels become the pixels of each 2x2 block of one: (B, C, 2h, 2w).

    x is (B, 4C, h + overlap, w + overlap), channel (2 * row + column) * C + c for pixel (row, column) of a block; bias
    (4C,) is added to it first. With overlap 1 the image for the lower (right) pixel of a block is taken from one row
    further down (one column to the right).
    """

    @staticmethod
    def forward(ctx, x, bias, overlap):
        b, channels, h, w = x.shape
        out = _empty(x, (b, channels // 4, 2 * (h - overlap), 2 * (w - overlap)), x.dtype)
        _interleave(innermost(x), bias.contiguous(), out, overlap, backward=False)
        ctx.shape, ctx.overlap, ctx.bias = x.shape, overlap, bias.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        out = _empty(grad, ctx.shape, grad.dtype)  # 0 where forward took nothing
        _interleave(out, out, innermost(grad), ctx.overlap, backward=True)
        return out, out.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias), None


def _interleave(x: Tensor, bias: Tensor, out: Tensor, overlap: int, backward: bool) -> None:
    batch, channels, height, width = out.shape
    s = _shape(batch, channels, 4 * x.shape[2] * x.shape[3], TILE, SUMS_TILE, PROGRAMS)
    _move[s.programs(s.once)](
        x, bias, out, s.rows, height // 2, width // 2, P=overlap, BACKWARD=backward, **s.once, num_warps=WARPS
    )


def _group_tile(width: int) -> dict[str, int]:
    """Channels of a group, and splits that are read at once: mostly the same for all layers of a network."""
    padded = max(16, _power_of_2(width))
    return {"WP": padded, "BS": max(1, 1024 // padded)}


@triton.jit
def _tile(start, ROWS, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr):
    """Offsets from the start of the tile, and which of them exist."""
    rows = tl.arange(0, BR)
    columns = tl.arange(0, CP)
    offsets = rows[:, None] * C + columns[None, :]
    mask = (start + rows < ROWS)[:, None]
    if CP != C:
        mask = mask & (columns < C)[None, :]
    return offsets, mask


@triton.jit
def _load(source, begin, step, ROWS, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr):
    """A tile, so many after the one at row ``begin``, which is where source points."""
    offsets, mask = _tile(begin + step * BR, ROWS, C, CP, BR)
    return tl.load(source + (step * BR * C + offsets), mask=mask, other=0.0), mask


@triton.jit
def _tiles_with(row, ROWS, STEPS, BR: tl.constexpr):
    """Of STEPS tiles that follow each other, how many have each row of a tile, which is ``row`` in the first."""
    return tl.minimum((tl.maximum(ROWS - row, 0) + BR - 1) // BR, STEPS)


@triton.jit(do_not_specialize=("ROWS", "STEPS"))
def _statistics(x, partial, ROWS, STEPS, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr):
    """Mean, and sum of squared distances to it, of every channel over this program's rows.

    Each element of a tile has sums of its own over the tiles, of distances to its first value: no mean, however large,
    costs precision. They are merged at the end.
    """
    split, sample = tl.program_id(0), tl.program_id(1)
    begin = split * STEPS * BR
    source = x + (sample.to(tl.int64) * ROWS + begin) * C
    first = _load(source, begin, 0, ROWS, C, CP, BR)[0].to(tl.float32)
    sums = tl.zeros((BR, CP), tl.float32)
    squares = tl.zeros((BR, CP), tl.float32)
    for step in tl.range(0, STEPS, num_stages=4):  # the next three tiles are on their way to shared memory meanwhile
        v, mask = _load(source, begin, step, ROWS, C, CP, BR)
        distance = tl.where(mask, v.to(tl.float32) - first, 0.0)
        sums += distance
        squares += distance * distance
    n = _tiles_with(begin + tl.arange(0, BR), ROWS, STEPS, BR).to(tl.float32)[:, None]
    of_mean = sums / tl.maximum(n, 1.0)
    squares -= sums * of_mean
    rows = tl.minimum(ROWS - begin, STEPS * BR).to(tl.float32)
    mean = tl.sum((first + of_mean) * n, axis=0) / rows
    distance = first + of_mean - mean[None, :]
    squares += distance * distance * n
    columns = tl.arange(0, CP)
    target = partial + (sample * tl.num_programs(0) + split).to(tl.int64) * (2 * C) + columns
    tl.store(target, mean, mask=columns < C)
    tl.store(target + C, tl.sum(squares, axis=0), mask=columns < C)


@triton.jit(do_not_specialize=("ROWS", "SPLITS", "SPLIT_ROWS", "OWN", "CHANNELS", "GROUPS", "SHIFTED"))
def _merge_statistics(
    partial, weight, bias, shift, mean_ptr, inverse_ptr, centre, scale, offset, ROWS, SPLITS, SPLIT_ROWS, eps, OWN,
    CHANNELS, GROUPS, SHIFTED, WP: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """One group of one sample: its mean and 1 / deviation, and what every channel is multiplied by and gets added."""
    group, sample = tl.program_id(0), tl.program_id(1)
    width = CHANNELS // GROUPS
    within = tl.arange(0, WP)
    real = within < width
    channel = group * width + within
    source = partial + sample.to(tl.int64) * SPLITS * (2 * CHANNELS) + channel[None, :]
    rows = ROWS * 1.0

    mean = tl.zeros((WP,), tl.float32)
    for start in range(0, SPLITS, BS):
        split = start + tl.arange(0, BS)[:, None]
        n = tl.minimum(tl.maximum(ROWS - split * SPLIT_ROWS, 0), SPLIT_ROWS).to(tl.float32)
        mask = (split < SPLITS) & real[None, :]
        mean += tl.sum(tl.load(source + split * (2 * CHANNELS), mask=mask, other=0.0) * (n / rows), axis=0)
    squares = tl.zeros((WP,), tl.float32)
    for start in range(0, SPLITS, BS):
        split = start + tl.arange(0, BS)[:, None]
        n = tl.minimum(tl.maximum(ROWS - split * SPLIT_ROWS, 0), SPLIT_ROWS).to(tl.float32)
        mask = (split < SPLITS) & real[None, :]
        difference = tl.where(mask, tl.load(source + split * (2 * CHANNELS), mask=mask, other=0.0) - mean[None, :], 0.0)
        squares += tl.sum(
            tl.load(source + split * (2 * CHANNELS) + CHANNELS, mask=mask, other=0.0) + difference * difference * n, 0
        )

    added = tl.load(shift + channel, mask=real & (SHIFTED != 0), other=0.0).to(tl.float32)
    mean += added
    group_mean = tl.sum(tl.where(real, mean, 0.0), axis=0) / width
    difference = tl.where(real, mean - group_mean, 0.0)
    variance = (tl.sum(squares, axis=0) / rows + tl.sum(difference * difference, axis=0)) / width
    inverse = 1.0 / tl.sqrt(variance + eps)
    tl.store(mean_ptr + sample * GROUPS + group, group_mean)
    tl.store(inverse_ptr + sample * GROUPS + group, inverse)
    tl.store(centre + sample * CHANNELS + channel, difference * inverse, mask=real)
    w = tl.load(weight + sample * OWN * CHANNELS + channel, mask=real, other=0.0).to(tl.float32)
    b = tl.load(bias + sample * OWN * CHANNELS + channel, mask=real, other=0.0).to(tl.float32)
    tl.store(scale + sample * CHANNELS + channel, w * inverse, mask=real)
    tl.store(offset + sample * CHANNELS + channel, b + (added - group_mean) * (w * inverse), mask=real)


@triton.jit(do_not_specialize=("ROWS", "BATCH"))
def _normalise(
    x, y, scale, offset, ROWS, BATCH, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr, SILU: tl.constexpr
):
    """y = scale * x + offset, and the activation.

    The last sample comes first: of a tensor larger than the cache, that is what the pass before has left there.
    """
    start, sample = tl.program_id(0) * BR, BATCH - 1 - tl.program_id(1)
    offsets, mask = _tile(start, ROWS, C, CP, BR)
    base = (sample.to(tl.int64) * ROWS + start) * C
    columns = tl.arange(0, CP)
    a = tl.load(scale + sample * C + columns, mask=columns < C, other=0.0)
    b = tl.load(offset + sample * C + columns, mask=columns < C, other=0.0)
    z = tl.load(x + base + offsets, mask=mask, other=0.0).to(tl.float32) * a[None, :] + b[None, :]
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    tl.store(y + base + offsets, z.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _parameters(
    weight, bias, shift, mean, inverse, sample, OWN, SHIFTED, C: tl.constexpr, CP: tl.constexpr, G: tl.constexpr
):  # fmt: skip
    """For every channel weight, bias, 1 / deviation, and what makes the normalised value x * inverse + centre."""
    columns = tl.arange(0, CP)
    real = columns < C
    w = tl.load(weight + sample * OWN * C + columns, mask=real, other=0.0).to(tl.float32)
    b = tl.load(bias + sample * OWN * C + columns, mask=real, other=0.0).to(tl.float32)
    r = tl.load(inverse + sample * G + columns // (C // G), mask=real, other=0.0)
    m = tl.load(mean + sample * G + columns // (C // G), mask=real, other=0.0)
    m -= tl.load(shift + columns, mask=real & (SHIFTED != 0), other=0.0).to(tl.float32)
    return w, b, r, -m * r


@triton.jit
def _slope(dy, normal, w, b, SILU: tl.constexpr):
    """The gradient before the activation."""
    if SILU:
        z = normal * w[None, :] + b[None, :]
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        dy = dy * sigmoid * (1.0 + z * (1.0 - sigmoid))
    return dy


@triton.jit(do_not_specialize=("ROWS", "STEPS", "OWN", "SHIFTED"))
def _gradient_sums(
    dy, x, weight, bias, shift, mean, inverse, partial, ROWS, STEPS, OWN, SHIFTED, SILU: tl.constexpr,
    G: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Over this program's rows and for every channel, the sums of g and of g * n: the gradient before the activation
    and the normalised value. Each element of a tile has its own until the end."""
    split, sample = tl.program_id(0), tl.program_id(1)
    begin = split * STEPS * BR
    base = (sample.to(tl.int64) * ROWS + begin) * C
    w, b, r, centre = _parameters(weight, bias, shift, mean, inverse, sample, OWN, SHIFTED, C, CP, G)
    first = tl.zeros((BR, CP), tl.float32)
    second = tl.zeros((BR, CP), tl.float32)
    for step in tl.range(0, STEPS, num_stages=3):
        g, _ = _load(dy + base, begin, step, ROWS, C, CP, BR)  # 0 outside, so that n there does not count
        v, _ = _load(x + base, begin, step, ROWS, C, CP, BR)
        normal = v.to(tl.float32) * r[None, :] + centre[None, :]
        slope = _slope(g.to(tl.float32), normal, w, b, SILU)
        first += slope
        second += slope * normal
    columns = tl.arange(0, CP)
    target = partial + (sample * tl.num_programs(0) + split).to(tl.int64) * (2 * C) + columns
    tl.store(target, tl.sum(first, axis=0), mask=columns < C)
    tl.store(target + C, tl.sum(second, axis=0), mask=columns < C)


@triton.jit(do_not_specialize=("ROWS", "SPLITS", "OWN", "CHANNELS", "GROUPS"))
def _merge_gradient_sums(
    partial, weight, inverse, centre, means, d_weight, d_bias, d_shift, ROWS, SPLITS, OWN,
    CHANNELS, GROUPS, WP: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """One group of one sample: gradients of its parameters, and the two means that the gradient of x needs."""
    group, sample = tl.program_id(0), tl.program_id(1)
    width = CHANNELS // GROUPS
    within = tl.arange(0, WP)
    real = within < width
    channel = group * width + within
    size = 2 * CHANNELS
    source = partial + sample.to(tl.int64) * SPLITS * size + channel[None, :]
    first = tl.zeros((WP,), tl.float32)
    second = tl.zeros((WP,), tl.float32)
    for start in range(0, SPLITS, BS):
        split = start + tl.arange(0, BS)[:, None]
        mask = (split < SPLITS) & real[None, :]
        here = source + split * size
        first += tl.sum(tl.load(here, mask=mask, other=0.0), axis=0)
        second += tl.sum(tl.load(here + CHANNELS, mask=mask, other=0.0), axis=0)
    w = tl.load(weight + sample * OWN * CHANNELS + channel, mask=real, other=0.0).to(tl.float32)
    r = tl.load(inverse + sample * GROUPS + group)
    rows = ROWS * 1.0
    mean_g = tl.sum(w * first, axis=0) / (rows * width)
    mean_gn = tl.sum(w * second, axis=0) / (rows * width)
    tl.store(means + (sample * GROUPS + group) * 2, mean_g)
    tl.store(means + (sample * GROUPS + group) * 2 + 1, mean_gn)
    target = sample * CHANNELS + channel
    tl.store(d_bias + target, first, mask=real)
    tl.store(d_weight + target, second, mask=real)
    n = tl.load(centre + target, mask=real, other=0.0)
    # the gradient of x, summed over the rows
    tl.store(d_shift + target, r * (w * first - rows * (mean_g + mean_gn * n)), mask=real)


@triton.jit(do_not_specialize=("ROWS", "BATCH", "OWN", "SHIFTED"))
def _gradient(
    dy, x, weight, bias, shift, mean, inverse, means, dx, ROWS, BATCH, OWN, SHIFTED, SILU: tl.constexpr,
    G: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """The gradient of x, last sample first as in `_normalise`."""
    start, sample = tl.program_id(0) * BR, BATCH - 1 - tl.program_id(1)
    offsets, mask = _tile(start, ROWS, C, CP, BR)
    offsets += (sample.to(tl.int64) * ROWS + start) * C
    w, b, r, centre = _parameters(weight, bias, shift, mean, inverse, sample, OWN, SHIFTED, C, CP, G)
    columns = tl.arange(0, CP)
    group = (sample * G + columns // (C // G)) * 2
    mean_g = tl.load(means + group, mask=columns < C, other=0.0)
    mean_gn = tl.load(means + group + 1, mask=columns < C, other=0.0)
    g = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
    normal = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) * r[None, :] + centre[None, :]
    g = _slope(g, normal, w, b, SILU)
    d = r[None, :] * (g * w[None, :] - mean_g[None, :] - normal * mean_gn[None, :])
    tl.store(dx + offsets, d.to(dx.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("ROWS",))
def _add(x, y, bias, out, ROWS, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr):
    start, sample = tl.program_id(0) * BR, tl.program_id(1)
    offsets, mask = _tile(start, ROWS, C, CP, BR)
    offsets += (sample.to(tl.int64) * ROWS + start) * C
    columns = tl.arange(0, CP)
    b = tl.load(bias + columns, mask=columns < C, other=0.0).to(tl.float32)
    sum_ = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) + b[None, :]
    sum_ += tl.load(y + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, sum_.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("ROWS", "HEIGHT", "WIDTH"))
def _move(
    x, bias, out, ROWS, HEIGHT, WIDTH, P: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr,
    BACKWARD: tl.constexpr,
):  # fmt: skip
    """Rows (i, j, part) of x (HEIGHT + P, WIDTH + P, 4) to or from the rows of out (2 HEIGHT, 2 WIDTH)."""
    start, sample = tl.program_id(0) * BR, tl.program_id(1)
    offsets, mask = _tile(start, ROWS, C, CP, BR)
    offsets += (sample.to(tl.int64) * ROWS + start) * C
    columns = tl.arange(0, CP)

    row = start + tl.arange(0, BR)
    down, right = (row // 2) % 2, row % 2
    i = row // 4 // (WIDTH + P) - P * down
    j = row // 4 % (WIDTH + P) - P * right
    used = (row < ROWS) & (i >= 0) & (i < HEIGHT) & (j >= 0) & (j < WIDTH)
    pixel = sample.to(tl.int64) * (4 * HEIGHT * WIDTH) + (2 * i + down) * (2 * WIDTH) + 2 * j + right
    pixels = pixel[:, None] * C + columns[None, :]
    exists = used[:, None]
    if CP != C:
        exists = exists & (columns < C)[None, :]
    if BACKWARD:
        v = tl.load(out + pixels, mask=exists, other=0.0)
        tl.store(x + offsets, v.to(x.dtype.element_ty), mask=mask)
    else:
        v = tl.load(x + offsets, mask=exists, other=0.0).to(tl.float32)
        v += tl.load(bias + (row % 4)[:, None] * C + columns[None, :], mask=exists, other=0.0).to(tl.float32)
        tl.store(out + pixels, v.to(out.dtype.element_ty), mask=exists)
