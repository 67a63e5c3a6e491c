"""Triton kernels for RMS norm over channels with SiLU, on rows of channels: one pass forward, one backward.

A row is a position, all its channels innermost in memory. Forward reads x and writes the result; backward reads x and
the gradient, computes the norm again and writes the gradient of x. Arithmetic is float32. Sums over rows for weight and
bias are added up in a fixed order: equal inputs give equal bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from gsqtok.acceleration.fused_triton import innermost

TILE = 4096  # elements a tile, 32 for each thread; half of it backward, which keeps two sums for each
PROGRAMS = 640  # that share the rows backward, five on each multiprocessor of the largest GPUs
WARPS = 4


class RMSNormSiLU(torch.autograd.Function):
    """``silu(x / rms(x) * weight + bias)`` of x (B, C, H, W), the root mean square over channels; weight, bias (C,)."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        x, weight, bias = innermost(x), weight.contiguous(), bias.contiguous()
        out, (rows, sizes) = torch.empty_like(x), _sizes(x, TILE)
        _forward[(-(-rows // sizes["ROWS"]),)](x, weight, bias, out, rows, eps, **sizes, num_warps=WARPS)
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, bias = ctx.saved_tensors
        out, (rows, sizes) = torch.empty_like(x), _sizes(x, TILE // 2)
        tiles = -(-rows // sizes["ROWS"])
        steps = -(-tiles // PROGRAMS)
        programs = -(-tiles // steps)
        sums = torch.empty((programs, 2, sizes["CHANNELS"]), dtype=torch.float32, device=x.device)
        _backward[(programs,)](
            innermost(grad), x, weight, bias, out, sums, rows, steps, ctx.eps, **sizes, num_warps=WARPS
        )
        d_weight, d_bias = sums.sum(0)
        return out, d_weight.to(weight.dtype), d_bias.to(bias.dtype), None


def _sizes(x: Tensor, tile: int) -> tuple[int, dict[str, int]]:
    """The rows, and what the kernels are compiled for."""
    channels = x.shape[1]
    padded = 1 << (channels - 1).bit_length()
    return x.numel() // channels, {"CHANNELS": channels, "PADDED": padded, "ROWS": max(1, tile // padded)}


@triton.jit(do_not_specialize=["rows"])
def _forward(
    x, weight, bias, out, rows, eps,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, PADDED)
    inside = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
    place = row.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    v = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(v * v, axis=1) / CHANNELS + eps)
    u = v * inverse[:, None] * scale[None, :] + offset[None, :]
    tl.store(out + place, (u * tl.sigmoid(u)).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "steps"])
def _backward(
    grad, x, weight, bias, out, sums, rows, steps, eps,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Each program takes every so many tiles; sums of one are reduced over rows once, at its end."""
    channel = tl.arange(0, PADDED)
    known = channel < CHANNELS
    scale = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    of_weight = tl.zeros((ROWS, PADDED), tl.float32)
    of_bias = tl.zeros((ROWS, PADDED), tl.float32)
    for step in range(steps):
        row = (step * tl.num_programs(0) + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & known[None, :]
        place = row.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
        v = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(v * v, axis=1) / CHANNELS + eps)
        normed = v * inverse[:, None]
        u = normed * scale[None, :] + offset[None, :]
        s = tl.sigmoid(u)
        d = d * s * (1 + u * (1 - s))
        of_weight += d * normed
        of_bias += d
        d = d * scale[None, :]
        d = inverse[:, None] * (d - normed * (tl.sum(d * normed, axis=1) / CHANNELS)[:, None])
        tl.store(out + place, d.to(out.dtype.element_ty), mask=inside)
    at = sums + tl.program_id(0) * 2 * CHANNELS + channel
    tl.store(at, tl.sum(of_weight, axis=0), mask=known)
    tl.store(at + CHANNELS, tl.sum(of_bias, axis=0), mask=known)
