"""The parts that the encoder and the decoder are made of.

All take and return (B, C, H, W), the strided convolution also a bias that it leaves to the next block. The layout of
weights is that of the paper's official checkpoints, up to names.

Each says first what it computes, in PyTorch's own operators. Where `gsqtok.acceleration.fused` can run (CUDA, channels
innermost in memory) it computes the same in fewer passes over memory; so it does on a CPU without gradient
(`gsqtok.acceleration.cpu`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gsqtok.acceleration import cpu, fused

NORM_GROUPS = 32
NORM_EPS = 1e-5  # of the paper's networks; others that have the same layers differ in it


def convolved(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The convolution, and its bias where that is still to be added: a residual block or a norm takes it as shift."""
    if fused.fusible(x) or fused.fusible(conv.weight):  # either puts the channels of the output innermost
        return fused.convolve(conv, x), conv.bias.clone()  # fully sharded parameters end with their block's pass
    return conv(x), None


class GroupNorm(nn.GroupNorm):
    """GroupNorm with the 32 groups that the paper uses throughout, and the SiLU that follows it almost everywhere."""

    def __init__(self, channels: int, eps: float = NORM_EPS, silu: bool = False) -> None:
        super().__init__(NORM_GROUPS, channels, eps=eps)
        self.silu = silu

    def forward(self, x: Tensor, shift: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """(B, C, H, W) -> the same shape.

        Args:
            x: what is normalised.
            shift: (C,), added to x first: the bias of the convolution before.
            dtype: of the result, unless autocast chooses; None takes that of x.
        """
        if _autocasting(x):
            dtype = None
        elif dtype is None:
            dtype = x.dtype
        if fused.fusible(x):
            return fused.group_norm(x, self.weight, self.bias, self.num_groups, self.eps, self.silu, shift, dtype)
        if shift is not None:
            x = x + shift[:, None, None]
        x = _group_norm(x if dtype is None else x.to(self.weight.dtype), self)
        if dtype is not None:
            x = x.to(dtype)
        return F.silu(x, inplace=not torch.is_grad_enabled()) if self.silu else x


def _group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    if cpu.applies(x):
        return cpu.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    # F.group_norm refuses a single value a group, also in evaluation, but only where the batch is one image.
    return torch.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _autocasting(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, conv, GroupNorm, SiLU, conv, plus the input (through a 1x1 conv where channels change)."""

    def __init__(self, in_channels: int, out_channels: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, eps, silu=True)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels, eps, silu=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W); ``shift`` (in_channels,) is added to x first."""
        if fused.fusible(x):
            h = fused.convolve(self.conv1, self.norm1(x, shift=shift))
            h = fused.convolve(self.conv2, self.norm2(h, shift=self.conv1.bias))
            bias = self.conv2.bias
            if isinstance(self.skip, nn.Identity):
                return fused.add(x, h, bias if shift is None else bias + shift)
            bias = bias + self.skip.bias
            return fused.add(
                fused.convolve(self.skip, x), h, bias if shift is None else bias + self.skip.weight.flatten(1) @ shift
            )
        if shift is not None:
            x = x + shift[:, None, None]
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        if cpu.applies(h) and h.dtype == x.dtype:
            return h.add_(self.skip(x))
        return self.skip(x) + h


def recomputed(block: nn.Module, x: Tensor, *shift: Tensor | None) -> Tensor:
    """``block(x)``; a residual block keeps only x for the backward pass, and computes the rest again there."""
    if isinstance(block, ResidualBlock) and torch.is_grad_enabled():
        # no block draws random numbers
        return checkpoint(block, x, *shift, use_reentrant=False, preserve_rng_state=False)
    return block(x, *shift)


class Attention(nn.Module):
    """Single-head self-attention over all positions, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halves height and width with a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> (B, C, H/2, W/2), and a shift (C,) where the next block is to add one."""
        return convolved(self.conv, x)


class NearestUpsample(nn.Module):
    """Doubles height and width by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        if fused.fusible(x):
            return fused.interleave(
                F.conv2d(x, self._weight_before_repetition(), padding=1), self.conv.bias.repeat(4), 1
            )
        if cpu.applies(x):
            return cpu.upsample(x, self.conv)
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))

    def _weight_before_repetition(self) -> Tensor:
        """(4 C, C, 2, 2): for each of the four pixels of a block the 2x2 convolution that the 3x3 one amounts to.

        The three rows that the upper pixel of a pair sees are repetitions of two: of the row above, and twice of its
        own. The lower pixel sees twice its own and the row below. So 4 of 9 products are left, and nothing is repeated.
        """
        weight = self.conv.weight
        first, second, third = weight.float().unbind(2)
        rows = torch.stack([first, second + third, first + second, third])  # (2 x 2, C, C, 3): pixel, tap
        first, second, third = rows.unbind(-1)
        taps = torch.stack([first, second + third, first + second, third])  # (column 2 x 2, row 2 x 2, C, C)
        taps = taps.unflatten(1, (2, 2)).unflatten(0, (2, 2))  # (column, its tap, row, its tap, out, in)
        folded = taps.permute(2, 0, 4, 5, 3, 1).flatten(0, 2)
        return folded.to(weight.dtype, memory_format=torch.channels_last)


class DepthToSpaceUpsample(nn.Module):
    """A 3x3 convolution to 4C channels, whose quarters become the pixels of each 2x2 block (DCR order).

    Channel (row * 2 + column) * C + c goes to pixel (row, column) of channel c. ``torch.pixel_shuffle`` orders channels
    the other way (CRD), so this is a reshape of its own, as in the official checkpoints.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        if fused.fusible(x):
            return fused.interleave(fused.convolve(self.conv, x), self.conv.bias)
        return interleaved(self.conv(x))


def interleaved(x: Tensor) -> Tensor:
    """(B, 4C, H, W) -> (B, C, 2H, 2W): quarters of the channels become the pixels of each 2x2 block (DCR order)."""
    b, c, h, w = x.shape
    return x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm whose scale and bias come from the spatial statistics of the quantized latent (paper, section 4.1).

    scale = gamma(std of the latent), bias = beta(mean of the latent). It starts as a plain GroupNorm.
    """

    def __init__(self, channels: int, latent_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6, affine=False)
        self.gamma = nn.Linear(latent_dim, channels)
        self.beta = nn.Linear(latent_dim, channels)
        for parameter in (self.gamma.weight, self.beta.weight, self.beta.bias):
            nn.init.zeros_(parameter)
        nn.init.ones_(self.gamma.bias)

    def forward(self, x: Tensor, quantized: Tensor) -> Tensor:
        """(B, C, H, W) and the quantized latent (B, D, h, w) -> (B, C, H, W)."""
        scale, bias = self.factors(quantized)
        if fused.fusible(x):
            return fused.group_norm(x, scale, bias, self.norm.num_groups, self.norm.eps)
        out = torch.addcmul(bias[:, :, None, None], scale[:, :, None, None], _group_norm(x, self.norm))
        return out if _autocasting(x) else out.to(x.dtype)

    def factors(self, quantized: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and bias, both (B, C), of the latent (B, D, h, w); the latent may be on another device."""
        weight = self.gamma.weight
        latent = quantized.flatten(2).to(torch.promote_types(weight.dtype, torch.float32))
        # The unbiased variance of one value is 0 / 0: a 1x1 latent has no spread.
        variance = latent.var(2, correction=min(1, latent.shape[2] - 1))
        scale = self.gamma((variance + self.norm.eps).sqrt().to(weight))
        return scale, self.beta(latent.mean(2).to(weight))
