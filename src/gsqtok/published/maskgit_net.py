"""The networks of MaskGIT's VQGAN (Chang et al. 2022, arXiv 2202.04200), which MaskBit and TiTok's decoder share.

Convolutions in blocks have no bias, nothing attends, and where the number of channels changes the input of a block is
left out of its sum: the 1x1 convolution is of the branch. Images are in [0, 1] there; here in [-1, 1] on either side.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gsqtok.networks.blocks import GroupNorm, NearestUpsample
from gsqtok.published.taming_net import EPS, Downsample


class Block(nn.Module):
    """GroupNorm, SiLU, conv, twice; plus the input, or a 1x1 convolution of the result where channels change."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(width, EPS, silu=True)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1, bias=False)
        self.norm2 = GroupNorm(out, EPS, silu=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.nin_shortcut = None if width == out else nn.Conv2d(out, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> (B, out, H, W)."""
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class Level(nn.Module):
    """Blocks at one resolution, and the way to the next level."""

    def __init__(self, width: int, out: int, blocks: int, resample: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*(Block(width if i == 0 else out, out) for i in range(blocks)))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> (B, out, H', W')."""
        return self.resample(self.block(x))


class Encoder(nn.Module):
    """Images to latents.

    Args:
        channels: of the first convolution.
        widths: channels of each level, at full resolution first.
        blocks: residual blocks a level.
        middle: residual blocks at the lowest resolution.
        dim: channels D of the latent.
        strided: down-sample by a strided convolution; else by the mean of each 2x2 block.
    """

    def __init__(self, channels: int, widths: Sequence[int], blocks: int, middle: int, dim: int, strided: bool) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        width = channels
        for level, out in enumerate(widths):
            resample: nn.Module = Downsample(out) if strided else nn.AvgPool2d(2)
            self.down.append(Level(width, out, blocks, resample if level < len(widths) - 1 else nn.Identity()))
            width = out
        self.mid = nn.Sequential(*(Block(width, width) for _ in range(middle)))
        self.norm_out = GroupNorm(width, EPS, silu=True)
        self.conv_out = nn.Conv2d(width, dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D, H/f, W/f)."""
        x = self.conv_in((images + 1) / 2)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x)))


class Decoder(nn.Module):
    """Quantized latents to images; arguments as for the encoder."""

    def __init__(self, widths: Sequence[int], blocks: int, middle: int, dim: int) -> None:
        super().__init__()
        width = widths[-1]
        self.conv_in = nn.Conv2d(dim, width, 3, padding=1)
        self.mid = nn.Sequential(*(Block(width, width) for _ in range(middle)))
        self.up = nn.ModuleList()  # at full resolution first; they run from the last
        for level, out in enumerate(widths):
            resample: nn.Module = NearestUpsample(out) if level > 0 else nn.Identity()
            self.up.append(Level(widths[min(level + 1, len(widths) - 1)], out, blocks, resample))
        self.norm_out = GroupNorm(widths[0], EPS, silu=True)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 3, h*f, w*f), about [-1, 1], not clamped."""
        x = self.mid(self.conv_in(quantized))
        for level in reversed(self.up):
            x = level(x)
        return 2 * self.conv_out(self.norm_out(x)) - 1
