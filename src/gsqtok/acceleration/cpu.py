"""How the networks run on a CPU without gradient: with channels innermost, in parts that fit its caches.

Convolutions are fastest with channels innermost, and what stands between them is bound by memory. ``run`` brings a
batch into that form; where ``applies`` holds, the blocks then use what is below in place of PyTorch's own operators,
which stay the truth that these are tested against (`benchmarks/cpu.py` has the figures).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIXELS = 2**16  # of images that go through a network at once; more only miss the caches, and need more memory
_POSITIONS = 2048  # that the statistics of a norm are summed over at a time, at the least


def run(network: nn.Module, x: Tensor, pixels: int) -> Tensor:
    """``network(x)`` without gradient, a few images at a time; no block looks at more than one.

    Args:
        network: called with x alone.
        x: its input, on a CPU.
        pixels: of the batch of images that x stands for, B * H * W.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    parts = x.split(max(1, PIXELS * len(x) // max(1, pixels)))
    return network(x) if len(parts) == 1 else torch.cat([network(part) for part in parts])


def applies(x: Tensor) -> bool:
    """Whether the functions below may be used for x (B, C, H, W); compilers and exporters get the plain formula."""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()  # a single position is both, and gains nothing
    )


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """``torch.group_norm`` in float32 with statistics that stay exact for large images.

    With channels innermost PyTorch adds all values of a group one after the other, and their squares, in float32: the
    result is off by 3e-5 at 256 x 256 positions and 1e-3 at 1024 x 1024. Here it does so for short stretches, whose
    means and variances are merged in float64; each stretch is then moved from its own to the common ones.
    """
    batch, channels, height, width = x.shape
    count = height * width
    parts = math.gcd(count, 1 << max(0, (count // _POSITIONS).bit_length() - 1))
    if parts == 1 or x.dtype != torch.float32:
        return torch.group_norm(x, groups, weight, bias, eps)
    stretches = x.permute(0, 2, 3, 1).reshape(batch * parts, -1, 1, channels).permute(0, 3, 1, 2)
    out, mean, inverse = torch.native_group_norm(
        stretches, None, None, batch * parts, channels, count // parts, groups, eps
    )
    mean, own = (s.double().view(batch, parts, groups) for s in (mean, inverse))
    variance, common = torch.var_mean(mean, 1, correction=0, keepdim=True)
    variance = variance + (own.pow(-2) - eps).mean(1, keepdim=True)
    inverse = (variance.clamp_min(0) + eps).rsqrt()
    scale, offset = inverse / own, (mean - common) * inverse
    scale, offset = (s.repeat_interleave(channels // groups, 2).view(-1, channels) for s in (scale, offset))
    if weight is not None:
        scale, offset = scale * weight, torch.addcmul(bias, offset, weight)
    scale, offset = (s.to(x.dtype)[:, :, None, None] for s in (scale, offset))
    torch.addcmul(offset, out, scale, out=out)
    return out.permute(0, 2, 3, 1).view(batch, height, width, channels).permute(0, 3, 1, 2)


def upsample(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Repetition to twice the height and width and then a 3x3 convolution, as one transposed 4x4 convolution.

    Every output pixel sees 2x2 positions in place of 3x3 pixels, hence 4 of 9 products, and nothing is repeated.
    """
    dtype = conv.weight.dtype
    weight = F.pad(conv.weight.to(torch.promote_types(dtype, torch.float32)).flip(2, 3), (1, 1, 1, 1))
    weight = weight[:, :, 1:] + weight[:, :, :-1]
    weight = weight[..., 1:] + weight[..., :-1]
    return F.conv_transpose2d(x, weight.transpose(0, 1).to(dtype), conv.bias, stride=2, padding=1)
