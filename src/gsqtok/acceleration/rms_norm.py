"""RMS norm over channels with SiLU as one operator that autograd and `torch.compile` know, run by Triton kernels.

`gsqtok.networks.compact.RMSNorm` uses it where `gsqtok.acceleration.fused.fusible` says so; its plain formula is the
truth that this is tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``silu(x / rms(x) * weight + bias)``, the root mean square over channels; arithmetic in float32.

    Args:
        x: (B, C, H, W) for which ``fusible`` holds.
        weight: (C,).
        bias: (C,).
        eps: added to the mean square.

    Returns:
        The shape and type of x, channels innermost.
    """
    return torch.ops.gsqtok.rms_norm_silu(x, weight, bias, eps)


torch.library.define("gsqtok::rms_norm_silu", "(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor")
torch.library.define(
    "gsqtok::rms_norm_silu_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("gsqtok::rms_norm_silu", "CompositeExplicitAutograd")
def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    from gsqtok.acceleration import rms_norm_triton

    out = _like(x)
    with torch.cuda.device_of(x):
        rms_norm_triton.forward(_innermost(x), weight.contiguous(), bias.contiguous(), eps, out)
    return out


@torch.library.register_fake("gsqtok::rms_norm_silu")
def _forward_fake(x, weight, bias, eps):
    return _like(x)


@torch.library.impl("gsqtok::rms_norm_silu_backward", "CompositeExplicitAutograd")
def _backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    from gsqtok.acceleration import rms_norm_triton

    out = _like(x)
    with torch.cuda.device_of(x):
        d_weight, d_bias = rms_norm_triton.backward(
            _innermost(grad), _innermost(x), weight.contiguous(), bias.contiguous(), eps, out
        )
    return out, d_weight.to(weight.dtype), d_bias.to(bias.dtype)


@torch.library.register_fake("gsqtok::rms_norm_silu_backward")
def _backward_fake(grad, x, weight, bias, eps):
    return _like(x), torch.empty_like(weight), torch.empty_like(bias)


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx, grad):
    return *torch.ops.gsqtok.rms_norm_silu_backward(grad, *ctx.saved_tensors, ctx.eps), None


torch.library.register_autograd("gsqtok::rms_norm_silu", _gradient, setup_context=_keep)


def _innermost(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)
