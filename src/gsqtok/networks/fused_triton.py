"""Triton kernels for what stands between convolutions, on tensors whose channels are innermost in memory (NHWC).

These stages only move data, so each is as few passes over it as can be: group normalisation with its activation reads
twice and writes once, forward and backward; only its input, mean and 1 / deviation are kept for the backward pass.

Statistics are those of tiles of rows (a row is one position, all channels), merged by Chan's formula in a fixed order:
equal inputs give equal bits. All arithmetic is float32 whatever the type of the tensors.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TILE = 8192  # elements a tile: 32 for each of 256 threads, which is four loads of 16 bytes in half precision
PROGRAMS = 2048  # tiles are shared out among no more programs than keep the largest GPUs busy several times over
WARPS = 8


class Shape:
    """Sizes of one launch over (batch, rows, channels); a tile is smaller the more tensors a thread holds of it."""

    def __init__(self, x: Tensor, inputs: int = 1) -> None:
        self.batch, self.channels, height, width = x.shape
        self.rows = height * width
        self.padded = triton.next_power_of_2(self.channels)
        self.tile_rows = max(1, min(TILE // inputs // self.padded, triton.next_power_of_2(self.rows)))
        self.tiles = triton.cdiv(self.rows, self.tile_rows)
        self.steps = max(1, min(8, self.tiles * self.batch // PROGRAMS))
        self.splits = triton.cdiv(self.tiles, self.steps)
        self.tile = {"C": self.channels, "CP": self.padded, "BR": self.tile_rows}


def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, eps: float, silu: bool, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Write into ``out`` and return mean and 1 / deviation, both (B, groups) float32.

    Args:
        x: (B, C, H, W), channels innermost; so is ``out``.
        weight: (C,), or (B, C) for a scale of each sample's own; ``bias`` likewise.
        shift: (C,), added to x first; None adds nothing.
        groups: of channels.
        eps: added to the variance.
        silu: apply SiLU after it.
        out: (B, C, H, W) of any float type.
    """
    s = Shape(x)
    width = s.channels // groups
    partial = x.new_empty((s.batch, s.splits, 2, s.channels), dtype=torch.float32)
    mean, inverse = (x.new_empty((s.batch, groups), dtype=torch.float32) for _ in range(2))
    scale, offset = (x.new_empty((s.batch, s.channels), dtype=torch.float32) for _ in range(2))
    _statistics[(s.splits, s.batch)](x, partial, s.rows, STEPS=s.steps, **s.tile, num_warps=WARPS)
    _merge_statistics[(groups, s.batch)](
        partial, weight, bias, weight if shift is None else shift, mean, inverse, scale, offset,
        s.rows, s.splits, s.steps * s.tile_rows, eps, s.channels if weight.ndim == 2 else 0,
        C=s.channels, G=groups, WIDTH=width, WP=triton.next_power_of_2(width), BS=_splits_at_once(s, width),
        SHIFTED=shift is not None, num_warps=4,
    )  # fmt: skip
    _normalise[(s.tiles, s.batch)](x, out, scale, offset, s.rows, s.batch, SILU=silu, **s.tile, num_warps=WARPS)
    return mean, inverse


def group_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    groups: int,
    silu: bool,
    out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the gradient of x into ``out``; return those of weight, bias and shift for each sample, (B, C) float32."""
    s = Shape(x, inputs=2)
    width = s.channels // groups
    shifted = shift is not None
    partial = x.new_empty((s.batch, s.splits, 3 if shifted else 2, s.channels), dtype=torch.float32)
    d_weight, d_bias, d_shift = (x.new_empty((s.batch, s.channels), dtype=torch.float32) for _ in range(3))
    means = x.new_empty((s.batch, groups, 2), dtype=torch.float32)
    stride = s.channels if weight.ndim == 2 else 0
    parameters = (weight, bias, shift if shifted else weight, mean, inverse)
    options = {"SILU": silu, "SHIFTED": shifted, "G": groups, "WIDTH": width} | s.tile
    _gradient_sums[(s.splits, s.batch)](
        grad, x, *parameters, partial, s.rows, stride, STEPS=s.steps, **options, num_warps=WARPS
    )
    _merge_gradient_sums[(groups, s.batch)](
        partial, weight, inverse, means, d_weight, d_bias, d_shift, s.rows, s.splits, stride,
        C=s.channels, G=groups, WIDTH=width, WP=triton.next_power_of_2(width), BS=_splits_at_once(s, width),
        SHIFTED=shifted, num_warps=4,
    )  # fmt: skip
    _gradient[(s.tiles, s.batch)](grad, x, *parameters, means, out, s.rows, s.batch, stride, **options, num_warps=WARPS)
    return d_weight, d_bias, d_shift


def add(x: Tensor, y: Tensor, bias: Tensor, out: Tensor) -> None:
    """out = x + y + bias, the bias (C,) for each channel; all (B, C, H, W) with channels innermost."""
    s = Shape(x)
    _add[(s.tiles, s.batch)](x, y, bias, out, s.rows, **s.tile, num_warps=WARPS)


def interleave(x: Tensor, bias: Tensor | None, overlap: int, out: Tensor) -> None:
    """Four images of (h, w) become the pixels of each 2x2 block of one: see `gsqtok.networks.fused.interleave`."""
    _interleave(x, bias, overlap, out, backward=False)


def interleave_backward(grad: Tensor, overlap: int, out: Tensor) -> None:
    """The gradient of ``interleave``: 0 where it took nothing."""
    _interleave(out, None, overlap, grad, backward=True)


def _interleave(x: Tensor, bias: Tensor | None, overlap: int, out: Tensor, backward: bool) -> None:
    batch, channels, height, width = out.shape
    padded = triton.next_power_of_2(channels)
    tile_rows = max(1, TILE // padded)
    rows = 4 * x.shape[2] * x.shape[3]
    _move[(triton.cdiv(rows, tile_rows), batch)](
        x, x if bias is None else bias, out, rows, height // 2, width // 2,
        P=overlap, C=channels, CP=padded, BR=tile_rows, BIASED=bias is not None, BACKWARD=backward, num_warps=WARPS,
    )  # fmt: skip


def _splits_at_once(s: Shape, width: int) -> int:
    return max(1, min(triton.next_power_of_2(s.splits), 2048 // triton.next_power_of_2(width)))


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
def _statistics(x, partial, ROWS, STEPS: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr):
    """Mean, and sum of squared distances to it, of every channel over this program's rows."""
    split, sample = tl.program_id(0), tl.program_id(1)
    source = x + sample.to(tl.int64) * ROWS * C
    mean = tl.zeros((CP,), tl.float32)
    squares = tl.zeros((CP,), tl.float32)
    count = 0.0
    for step in range(STEPS):
        start = (split * STEPS + step) * BR
        offsets, mask = _tile(start, ROWS, C, CP, BR)
        v = tl.load(source + start.to(tl.int64) * C + offsets, mask=mask, other=0.0).to(tl.float32)
        n = tl.minimum(tl.maximum(ROWS - start, 0), BR).to(tl.float32)
        tile_mean = tl.sum(v, axis=0) / tl.maximum(n, 1.0)
        distance = tl.where(mask, v - tile_mean[None, :], 0.0)
        total = tl.maximum(count + n, 1.0)
        difference = tile_mean - mean
        squares += tl.sum(distance * distance, axis=0) + difference * difference * (count * n / total)
        mean += difference * (n / total)
        count += n
    columns = tl.arange(0, CP)
    target = partial + (sample * tl.num_programs(0) + split).to(tl.int64) * (2 * C) + columns
    tl.store(target, mean, mask=columns < C)
    tl.store(target + C, squares, mask=columns < C)


@triton.jit
def _merge_statistics(
    partial, weight, bias, shift, mean_ptr, inverse_ptr, scale, offset, ROWS, SPLITS, SPLIT_ROWS, eps, stride,
    C: tl.constexpr, G: tl.constexpr, WIDTH: tl.constexpr, WP: tl.constexpr, BS: tl.constexpr,
    SHIFTED: tl.constexpr,
):  # fmt: skip
    """One group of one sample: its mean and 1 / deviation, and what every channel is multiplied by and gets added."""
    group, sample = tl.program_id(0), tl.program_id(1)
    within = tl.arange(0, WP)
    real = within < WIDTH
    channel = group * WIDTH + within
    source = partial + sample.to(tl.int64) * SPLITS * (2 * C) + channel[None, :]
    rows = ROWS * 1.0

    mean = tl.zeros((WP,), tl.float32)
    for start in range(0, SPLITS, BS):
        split = start + tl.arange(0, BS)[:, None]
        n = tl.minimum(tl.maximum(ROWS - split * SPLIT_ROWS, 0), SPLIT_ROWS).to(tl.float32)
        mask = (split < SPLITS) & real[None, :]
        mean += tl.sum(tl.load(source + split * (2 * C), mask=mask, other=0.0) * (n / rows), axis=0)
    squares = tl.zeros((WP,), tl.float32)
    for start in range(0, SPLITS, BS):
        split = start + tl.arange(0, BS)[:, None]
        n = tl.minimum(tl.maximum(ROWS - split * SPLIT_ROWS, 0), SPLIT_ROWS).to(tl.float32)
        mask = (split < SPLITS) & real[None, :]
        difference = tl.where(mask, tl.load(source + split * (2 * C), mask=mask, other=0.0) - mean[None, :], 0.0)
        squares += tl.sum(tl.load(source + split * (2 * C) + C, mask=mask, other=0.0) + difference * difference * n, 0)

    added = tl.zeros((WP,), tl.float32)
    if SHIFTED:
        added = tl.load(shift + channel, mask=real, other=0.0).to(tl.float32)
    mean += added
    group_mean = tl.sum(tl.where(real, mean, 0.0), axis=0) / WIDTH
    difference = tl.where(real, mean - group_mean, 0.0)
    variance = (tl.sum(squares, axis=0) / rows + tl.sum(difference * difference, axis=0)) / WIDTH
    inverse = 1.0 / tl.sqrt(variance + eps)
    tl.store(mean_ptr + sample * G + group, group_mean)
    tl.store(inverse_ptr + sample * G + group, inverse)
    w = tl.load(weight + sample * stride + channel, mask=real, other=0.0).to(tl.float32)
    b = tl.load(bias + sample * stride + channel, mask=real, other=0.0).to(tl.float32)
    tl.store(scale + sample * C + channel, w * inverse, mask=real)
    tl.store(offset + sample * C + channel, b + (added - group_mean) * (w * inverse), mask=real)


@triton.jit
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
    weight, bias, shift, mean, inverse, sample, stride,
    C: tl.constexpr, CP: tl.constexpr, G: tl.constexpr, WIDTH: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """For every channel weight, bias, 1 / deviation, and what makes the normalised value x * inverse + centre."""
    columns = tl.arange(0, CP)
    real = columns < C
    w = tl.load(weight + sample * stride + columns, mask=real, other=0.0).to(tl.float32)
    b = tl.load(bias + sample * stride + columns, mask=real, other=0.0).to(tl.float32)
    r = tl.load(inverse + sample * G + columns // WIDTH, mask=real, other=0.0)
    m = tl.load(mean + sample * G + columns // WIDTH, mask=real, other=0.0)
    if SHIFTED:
        m -= tl.load(shift + columns, mask=real, other=0.0).to(tl.float32)
    return w, b, r, -m * r


@triton.jit
def _slope(dy, normal, w, b, SILU: tl.constexpr):
    """The gradient before the activation."""
    if SILU:
        z = normal * w[None, :] + b[None, :]
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        dy = dy * sigmoid * (1.0 + z * (1.0 - sigmoid))
    return dy


@triton.jit
def _gradient_sums(
    dy, x, weight, bias, shift, mean, inverse, partial, ROWS, stride, STEPS: tl.constexpr, SILU: tl.constexpr,
    SHIFTED: tl.constexpr, G: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, CP: tl.constexpr,
    BR: tl.constexpr,
):  # fmt: skip
    """Over this program's rows and for every channel, the sums of g, of g * n and, if shifted, of n: the gradient
    before the activation and the normalised value."""
    split, sample = tl.program_id(0), tl.program_id(1)
    base = sample.to(tl.int64) * ROWS * C
    w, b, r, centre = _parameters(weight, bias, shift, mean, inverse, sample, stride, C, CP, G, WIDTH, SHIFTED)
    first = tl.zeros((CP,), tl.float32)
    second = tl.zeros((CP,), tl.float32)
    third = tl.zeros((CP,), tl.float32)
    for step in range(STEPS):
        start = (split * STEPS + step) * BR
        offsets, mask = _tile(start, ROWS, C, CP, BR)
        offsets += base + start.to(tl.int64) * C
        g = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
        normal = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) * r[None, :] + centre[None, :]
        g = _slope(g, normal, w, b, SILU)
        first += tl.sum(g, axis=0)
        second += tl.sum(g * normal, axis=0)
        if SHIFTED:
            third += tl.sum(tl.where(mask, normal, 0.0), axis=0)
    columns = tl.arange(0, CP)
    TERMS: tl.constexpr = 3 if SHIFTED else 2
    target = partial + (sample * tl.num_programs(0) + split).to(tl.int64) * (TERMS * C) + columns
    tl.store(target, first, mask=columns < C)
    tl.store(target + C, second, mask=columns < C)
    if SHIFTED:
        tl.store(target + 2 * C, third, mask=columns < C)


@triton.jit
def _merge_gradient_sums(
    partial, weight, inverse, means, d_weight, d_bias, d_shift, ROWS, SPLITS, stride,
    C: tl.constexpr, G: tl.constexpr, WIDTH: tl.constexpr, WP: tl.constexpr, BS: tl.constexpr,
    SHIFTED: tl.constexpr,
):  # fmt: skip
    """One group of one sample: gradients of its parameters, and the two means that the gradient of x needs."""
    group, sample = tl.program_id(0), tl.program_id(1)
    within = tl.arange(0, WP)
    real = within < WIDTH
    channel = group * WIDTH + within
    TERMS: tl.constexpr = 3 if SHIFTED else 2
    source = partial + sample.to(tl.int64) * SPLITS * (TERMS * C) + channel[None, :]
    first = tl.zeros((WP,), tl.float32)
    second = tl.zeros((WP,), tl.float32)
    third = tl.zeros((WP,), tl.float32)
    for start in range(0, SPLITS, BS):
        split = start + tl.arange(0, BS)[:, None]
        mask = (split < SPLITS) & real[None, :]
        here = source + split * (TERMS * C)
        first += tl.sum(tl.load(here, mask=mask, other=0.0), axis=0)
        second += tl.sum(tl.load(here + C, mask=mask, other=0.0), axis=0)
        if SHIFTED:
            third += tl.sum(tl.load(here + 2 * C, mask=mask, other=0.0), axis=0)
    w = tl.load(weight + sample * stride + channel, mask=real, other=0.0).to(tl.float32)
    r = tl.load(inverse + sample * G + group)
    rows = ROWS * 1.0
    mean_g = tl.sum(w * first, axis=0) / (rows * WIDTH)
    mean_gn = tl.sum(w * second, axis=0) / (rows * WIDTH)
    tl.store(means + (sample * G + group) * 2, mean_g)
    tl.store(means + (sample * G + group) * 2 + 1, mean_gn)
    target = sample * C + channel
    tl.store(d_bias + target, first, mask=real)
    tl.store(d_weight + target, second, mask=real)
    if SHIFTED:  # the gradient of x, summed over the rows
        tl.store(d_shift + target, r * (w * first - rows * mean_g - mean_gn * third), mask=real)


@triton.jit
def _gradient(
    dy, x, weight, bias, shift, mean, inverse, means, dx, ROWS, BATCH, stride, SILU: tl.constexpr,
    SHIFTED: tl.constexpr, G: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, CP: tl.constexpr,
    BR: tl.constexpr,
):  # fmt: skip
    """The gradient of x, last sample first as in `_normalise`."""
    start, sample = tl.program_id(0) * BR, BATCH - 1 - tl.program_id(1)
    offsets, mask = _tile(start, ROWS, C, CP, BR)
    offsets += (sample.to(tl.int64) * ROWS + start) * C
    w, b, r, centre = _parameters(weight, bias, shift, mean, inverse, sample, stride, C, CP, G, WIDTH, SHIFTED)
    columns = tl.arange(0, CP)
    group = (sample * G + columns // WIDTH) * 2
    mean_g = tl.load(means + group, mask=columns < C, other=0.0)
    mean_gn = tl.load(means + group + 1, mask=columns < C, other=0.0)
    g = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
    normal = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) * r[None, :] + centre[None, :]
    g = _slope(g, normal, w, b, SILU)
    d = r[None, :] * (g * w[None, :] - mean_g[None, :] - normal * mean_gn[None, :])
    tl.store(dx + offsets, d.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def _add(x, y, bias, out, ROWS, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr):
    start, sample = tl.program_id(0) * BR, tl.program_id(1)
    offsets, mask = _tile(start, ROWS, C, CP, BR)
    offsets += (sample.to(tl.int64) * ROWS + start) * C
    columns = tl.arange(0, CP)
    b = tl.load(bias + columns, mask=columns < C, other=0.0).to(tl.float32)
    sum_ = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) + b[None, :]
    sum_ += tl.load(y + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, sum_.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _move(
    x, bias, out, ROWS, HEIGHT, WIDTH, P: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr,
    BIASED: tl.constexpr, BACKWARD: tl.constexpr,
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
        if BIASED:
            v += tl.load(bias + columns, mask=columns < C, other=0.0).to(tl.float32)[None, :]
        tl.store(out + pixels, v.to(out.dtype.element_ty), mask=exists)
