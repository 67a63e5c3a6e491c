"""The networks on a CPU without gradient: with channels innermost, in parts that fit its caches.

Convolutions are fastest with channels innermost, and what stands between them is bound by memory (`benchmarks/cpu.py`
has the figures).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gsqtok.networks import Decoder, Encoder

PIXELS = 2**16  # of images that go through a network at once; more only miss the caches, and need more memory
_POSITIONS = 2048  # that the statistics of a norm are summed over at a time, at the least
_DEVIATIONS = 5  # the embedded tokenizer's means lie up to 3 from 0


def run(network: nn.Module, x: Tensor, pixels: int) -> Tensor:
    """``network(x)`` without gradient, a few images at a time; no network looks at more than one.

    Args:
        network: called with x alone.
        x: its input, on a CPU.
        pixels: of the batch of images that x stands for, B * H * W.
    """
    if not isinstance(network, Encoder | Decoder):  # which turn it themselves where they gain by it
        x = x.contiguous(memory_format=torch.channels_last)
    parts = x.split(max(1, PIXELS * len(x) // max(1, pixels)))
    return network(x) if len(parts) == 1 else torch.cat([network(part) for part in parts])


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group norm of x (B, C, H, W) with statistics that stay exact for large images; weight and bias (C,) or (B, C).

    With channels innermost PyTorch adds all values of a group one after the other, and their squares, in float32: the
    result is off by 3e-5 at 256 x 256 positions and 1e-3 at 1024 x 1024. Here it does so for short stretches, whose
    means and variances are merged in float64; each stretch is then moved from its own to the common ones. Where a mean
    is far above the deviation squares have lost the digits that count, and it is done with channels outermost.
    """
    batch, channels, height, width = x.shape
    count = height * width
    parts = math.gcd(count, 1 << max(0, (count // _POSITIONS).bit_length() - 1))
    if x.dtype != torch.float32 or not len(x):
        return _outermost(x, groups, weight, bias, eps)
    if parts == 1 and weight.ndim == 1:
        out, mean, inverse = torch.native_group_norm(x, weight, bias, batch, channels, count, groups, eps)
        return _outermost(x, groups, weight, bias, eps) if _lost(mean * inverse) else out
    stretches = x.permute(0, 2, 3, 1).reshape(batch * parts, -1, 1, channels).permute(0, 3, 1, 2)
    out, mean, inverse = torch.native_group_norm(
        stretches, None, None, batch * parts, channels, count // parts, groups, eps
    )
    mean, own = (s.double().view(batch, parts, groups) for s in (mean, inverse))
    variance, common = torch.var_mean(mean, 1, correction=0, keepdim=True)
    variance = variance + (own.pow(-2) - eps).mean(1, keepdim=True)
    inverse = (variance.clamp_min(0) + eps).rsqrt()
    if _lost(mean * inverse):
        return _outermost(x, groups, weight, bias, eps)
    scale, offset = (s.repeat_interleave(channels // groups, 2) for s in (inverse / own, (mean - common) * inverse))
    scale, offset = scale * weight.unsqueeze(-2), torch.addcmul(bias.unsqueeze(-2), offset, weight.unsqueeze(-2))
    scale, offset = (s.to(x.dtype).view(-1, channels, 1, 1) for s in (scale, offset))
    torch.addcmul(offset, out, scale, out=out)
    return out.permute(0, 2, 3, 1).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def _lost(distance: Tensor) -> bool:
    """Whether a mean lies so many deviations from 0 that its square hides the variance in float32."""
    return float(distance.abs().max()) > _DEVIATIONS


def _outermost(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if weight.ndim == 1:
        return torch.group_norm(x.contiguous(), groups, weight, bias, eps)
    out = torch.group_norm(x.contiguous(), groups, eps=eps)
    return torch.addcmul(bias[..., None, None], out, weight[..., None, None], out=out)
