"""The parts that the encoder and the decoder are made of.

All take and return (B, C, H, W). The layout of weights is that of the paper's official checkpoints, up to names. This
is the plain formula, in PyTorch's own operators; `gsqtok.acceleration` computes the same faster, and is tested against
it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_GROUPS = 32
NORM_EPS = 1e-5  # of the paper's networks; others that have the same layers differ in it


class GroupNorm(nn.GroupNorm):
    """GroupNorm with the 32 groups that the paper uses throughout, and the SiLU that follows it almost everywhere.

    It computes in the type of its weights, which may be more precise than that of its input and result.
    """

    def __init__(self, channels: int, eps: float = NORM_EPS, silu: bool = False) -> None:
        super().__init__(NORM_GROUPS, channels, eps=eps)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        # F.group_norm refuses a single value a group, also in evaluation, but only where the batch is one image.
        out = torch.group_norm(x.to(self.weight.dtype), self.num_groups, self.weight, self.bias, self.eps)
        return (F.silu(out) if self.silu else out).to(x.dtype)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, conv, GroupNorm, SiLU, conv, plus the input (through a 1x1 conv where channels change)."""

    def __init__(self, in_channels: int, out_channels: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, eps, silu=True)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels, eps, silu=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        return self.skip(x) + h


class Attention(nn.Module):
    """Single-head self-attention over all positions, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x + self.attend(self.norm(x))

    def attend(self, x: Tensor) -> Tensor:
        """Attention without norm and residual: (B, C, H, W) -> the same shape."""
        q, k, v = self.qkv(x).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v)
        return self.proj(h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halves height and width with a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(x)


class NearestUpsample(nn.Module):
    """Doubles height and width by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


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
        x = self.conv(x)
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
        normed = torch.group_norm(x.to(self.gamma.weight.dtype), self.norm.num_groups, eps=self.norm.eps)
        out = torch.addcmul(bias[:, :, None, None], scale[:, :, None, None], normed)
        autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)  # which chooses types itself
        return out if autocast else out.to(x.dtype)

    def factors(self, quantized: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and bias, both (B, C), of the latent (B, D, h, w); the latent may be on another device."""
        weight = self.gamma.weight
        latent = quantized.flatten(2).to(torch.promote_types(weight.dtype, torch.float32))
        # The unbiased variance of one value is 0 / 0: a 1x1 latent has no spread.
        variance = latent.var(2, correction=min(1, latent.shape[2] - 1))
        scale = self.gamma((variance + self.norm.eps).sqrt().to(weight))
        return scale, self.beta(latent.mean(2).to(weight))
