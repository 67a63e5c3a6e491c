"""What stands between convolutions, as operators that autograd and `torch.compile` know, run by Triton kernels.

The networks use them where ``fusible`` says so: on CUDA, with channels innermost in memory (``torch.channels_last``).
Elsewhere they compute the same with PyTorch's own operators, which are the truth that these are tested against.

The bias of a convolution belongs to these stages too: PyTorch adds it in a pass of its own over the output, here it is
added where the output is read next.
"""

from __future__ import annotations

import os
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_LARGEST_CHANNELS = 4096  # a tile holds all channels of a row, several of them at a time on their way to the kernel


def fusible(x: Tensor) -> bool:
    """Whether the kernels can run on x (B, C, H, W)."""
    return (
        (x.is_cuda or _INTERPRETED)
        and x.dtype in _DTYPES
        and x.shape[1] <= _LARGEST_CHANNELS
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > 0
        and _kernels_work(x.device)
    )


@lru_cache
def _kernels_work(device: torch.device) -> bool:
    try:
        import gsqtok.acceleration.fused_triton  # noqa: F401
    except ImportError:
        return False
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution without its bias."""
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding)


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool = False,
    shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``silu(group_norm(x + shift) * weight + bias)``, statistics and arithmetic in float32.

    Args:
        x: (B, C, H, W) for which ``fusible`` holds.
        weight: (C,), or (B, C) for a scale of each sample's own.
        bias: of the shape of ``weight``.
        groups: of channels, a divisor of C.
        eps: added to the variance.
        silu: apply SiLU.
        shift: (C,), added to x first.
        dtype: of the result; None takes that of x.
    """
    return torch.ops.gsqtok.group_norm(x, weight, bias, shift, groups, eps, silu, dtype or x.dtype)[0]


def add(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """x + y + bias: (B, C, H, W) twice and (C,)."""
    return torch.ops.gsqtok.add(x, y, bias)


def interleave(x: Tensor, bias: Tensor, overlap: int = 0) -> Tensor:
    """Four images side by side in the channels become the pixels of each 2x2 block of one.

    With overlap 1 the images are one larger each way, and the one for the lower (right) pixel of a block is taken from
    one row further down (one column to the right): the four 2x2 convolutions that are one 3x3 convolution after
    repetition share one padded input that way.

    Args:
        x: (B, 4C, h + overlap, w + overlap), channel (2 * row + column) * C + c for pixel (row, column) of a block.
        bias: (4C,), added to x first: that of the convolution that x comes from.

    Returns:
        (B, C, 2h, 2w), channels innermost.
    """
    return torch.ops.gsqtok.interleave(x, bias, overlap)


def _innermost(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(x: Tensor, dtype: torch.dtype | None = None, shape: tuple[int, ...] | None = None) -> Tensor:
    return torch.empty(
        x.shape if shape is None else shape,
        dtype=dtype or x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


torch.library.define(
    "gsqtok::group_norm",
    "(Tensor x, Tensor weight, Tensor bias, Tensor? shift, int groups, float eps, bool silu, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "gsqtok::group_norm_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor? shift, Tensor mean, Tensor inverse, Tensor centre,"
    " int groups, bool silu) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define("gsqtok::add", "(Tensor x, Tensor y, Tensor bias) -> Tensor")
torch.library.define("gsqtok::interleave", "(Tensor x, Tensor bias, int overlap) -> Tensor")
torch.library.define("gsqtok::interleave_backward", "(Tensor grad, int overlap) -> Tensor")


@torch.library.impl("gsqtok::group_norm", "CompositeExplicitAutograd")
def _group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from gsqtok.acceleration import fused_triton

    x, out = _innermost(x), _empty(x, dtype)
    with torch.cuda.device_of(x):
        return out, *fused_triton.group_norm(x, weight.contiguous(), bias.contiguous(), shift, groups, eps, silu, out)


@torch.library.register_fake("gsqtok::group_norm")
def _group_norm_fake(x, weight, bias, shift, groups, eps, silu, dtype):
    mean, inverse = (x.new_empty((x.shape[0], groups), dtype=torch.float32) for _ in range(2))
    return _empty(x, dtype), mean, inverse, x.new_empty(x.shape[:2], dtype=torch.float32)


@torch.library.impl("gsqtok::group_norm_backward", "CompositeExplicitAutograd")
def _group_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    centre: Tensor,
    groups: int,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from gsqtok.acceleration import fused_triton

    out = _empty(x)
    with torch.cuda.device_of(x):
        sums = fused_triton.group_norm_backward(
            _innermost(grad), _innermost(x), weight.contiguous(), bias.contiguous(), shift, mean, inverse, centre,
            groups, silu, out,
        )  # fmt: skip
    d_weight, d_bias, d_shift = sums
    if weight.ndim == 1:
        d_weight, d_bias = d_weight.sum(0), d_bias.sum(0)
    d_shift = d_shift.new_empty(0) if shift is None else d_shift.sum(0).to(shift.dtype)
    return out, d_weight.to(weight.dtype), d_bias.to(bias.dtype), d_shift


@torch.library.register_fake("gsqtok::group_norm_backward")
def _group_norm_backward_fake(grad, x, weight, bias, shift, mean, inverse, centre, groups, silu):
    return (
        _empty(x),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        torch.empty_like(bias, memory_format=torch.contiguous_format),
        x.new_empty(0, dtype=torch.float32) if shift is None else torch.empty_like(shift),
    )


def _keep_for_group_norm(ctx, inputs, output) -> None:
    x, weight, bias, shift, ctx.groups, _, ctx.silu, _ = inputs
    _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, shift, *kept)


def _group_norm_gradient(ctx, grad, *_):
    x, weight, bias, shift, *kept = ctx.saved_tensors
    if grad is None:
        return (None,) * 8
    dx, d_weight, d_bias, d_shift = torch.ops.gsqtok.group_norm_backward(
        grad, x, weight, bias, shift, *kept, ctx.groups, ctx.silu
    )
    return dx, d_weight, d_bias, None if shift is None else d_shift, None, None, None, None


torch.library.register_autograd("gsqtok::group_norm", _group_norm_gradient, setup_context=_keep_for_group_norm)


@torch.library.impl("gsqtok::add", "CompositeExplicitAutograd")
def _add(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    from gsqtok.acceleration import fused_triton

    out = _empty(x, torch.promote_types(x.dtype, y.dtype))
    with torch.cuda.device_of(x):
        fused_triton.add(_innermost(x), _innermost(y), bias, out)
    return out


@torch.library.register_fake("gsqtok::add")
def _add_fake(x, y, bias):
    return _empty(x, torch.promote_types(x.dtype, y.dtype))


def _keep_for_add(ctx, inputs, output) -> None:
    ctx.dtypes = tuple(tensor.dtype for tensor in inputs)


def _add_gradient(ctx, grad):
    x, y, bias = ctx.dtypes
    return grad.to(x), grad.to(y), grad.sum((0, 2, 3), dtype=torch.float32).to(bias)


torch.library.register_autograd("gsqtok::add", _add_gradient, setup_context=_keep_for_add)


@torch.library.impl("gsqtok::interleave", "CompositeExplicitAutograd")
def _interleave(x: Tensor, bias: Tensor, overlap: int) -> Tensor:
    from gsqtok.acceleration import fused_triton

    out = _interleave_fake(x, bias, overlap)
    with torch.cuda.device_of(x):
        fused_triton.interleave(_innermost(x), bias.contiguous(), overlap, out)
    return out


@torch.library.register_fake("gsqtok::interleave")
def _interleave_fake(x, bias, overlap):
    b, channels, h, w = x.shape
    return _empty(x, shape=(b, channels // 4, 2 * (h - overlap), 2 * (w - overlap)))


@torch.library.impl("gsqtok::interleave_backward", "CompositeExplicitAutograd")
def _interleave_backward(grad: Tensor, overlap: int) -> Tensor:
    from gsqtok.acceleration import fused_triton

    out = _interleave_backward_fake(grad, overlap)
    with torch.cuda.device_of(grad):
        fused_triton.interleave_backward(_innermost(grad), overlap, out)
    return out


@torch.library.register_fake("gsqtok::interleave_backward")
def _interleave_backward_fake(grad, overlap):
    b, channels, h, w = grad.shape
    return _empty(grad, shape=(b, 4 * channels, h // 2 + overlap, w // 2 + overlap))


def _keep_for_interleave(ctx, inputs, output) -> None:
    _, bias, ctx.overlap = inputs
    ctx.bias = bias.dtype


def _interleave_gradient(ctx, grad):
    dx = torch.ops.gsqtok.interleave_backward(grad, ctx.overlap)
    return dx, dx.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias), None


torch.library.register_autograd("gsqtok::interleave", _interleave_gradient, setup_context=_keep_for_interleave)
