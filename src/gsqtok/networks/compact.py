"""Networks for more quality in the same time: no level at full resolution, and norms that see one position alone.

They differ from the paper's (`gsqtok.networks.encoder`) in four ways:

- the image is folded first: 2x2 pixels become the channels of one position (space to depth), and the decoder's last
  convolution makes four pixels a position. The paper's first level, most of its time, is gone;
- a norm divides by the root mean square over the channels of a position (Zhang and Sennrich 2019, arXiv 1910.07467).
  Group norm's statistics over the whole image tie a network to the image size that it was trained at;
- a level's channels change where its resolution does, by one matrix between 2x2 positions and one;
- convolutions between norms have no bias, as the norms add one.

`docs/results/training.md` says what each of these is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FOLD = 2  # pixels a side that one position of the first level stands for


class RMSNorm(nn.Module):
    """Root mean square norm over the channels of each position, with scale and bias, then SiLU."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and type; computed in the type of the weights."""
        rows = x.permute(0, 2, 3, 1).to(self.weight.dtype)
        rows = F.rms_norm(rows, self.weight.shape, self.weight, self.eps) + self.bias
        return F.silu(rows).permute(0, 3, 1, 2).to(x.dtype)


class CompactBlock(nn.Module):
    """Norm, SiLU, conv, norm, SiLU, conv, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = RMSNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x + self.conv2(self.norm2(self.conv1(self.norm1(x))))


class Merge(nn.Conv2d):
    """Halves height and width: each 2x2 positions times one matrix."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2, bias=False)


class Split(nn.Module):
    """Doubles height and width: each position times one matrix makes 2x2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', 2H, 2W)."""
        return F.pixel_shuffle(self.conv(x), 2)


class CompactEncoder(nn.Module):
    """Image to latent; down-samples by f = 2^levels.

    Args:
        latent_dim: channels D of the latent.
        widths: channels of each level, the finest (two pixels a position) first.
        blocks: residual blocks of each level.
    """

    def __init__(self, latent_dim: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3 * FOLD**2, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if level > 0:
                self.blocks.append(Merge(widths[level - 1], width))
            self.blocks.extend(CompactBlock(width) for _ in range(count))
        self.norm_out = RMSNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], latent_dim, 1, bias=False)
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], H and W multiples of f -> (B, D, H/f, W/f)."""
        x = self.conv_in(F.pixel_unshuffle(images, FOLD))
        for block in self.blocks:
            x = block(x)
        # the last two layers may be kept more precise than those before
        return self.conv_out(self.norm_out(x.to(self.conv_out.weight.dtype)))


class CompactDecoder(nn.Module):
    """Quantized latent to image; up-samples by f = 2^levels.

    Args:
        latent_dim: channels D of the latent.
        widths: channels of each level in the order of the encoder's, which is walked from the last to the first.
        blocks: residual blocks of each level, in the same order.
    """

    def __init__(self, latent_dim: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent_dim, widths[-1], 3, padding=1, bias=False)
        self.blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            self.blocks.extend(CompactBlock(widths[level]) for _ in range(blocks[level]))
            if level > 0:
                self.blocks.append(Split(widths[level], widths[level - 1]))
        self.norm_out = RMSNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3 * FOLD**2, 3, padding=1)
        _initialize(self)

    @property
    def last_layer(self) -> Tensor:
        """The weights whose gradient the adaptive adversarial weight compares."""
        return self.conv_out.weight

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 3, h*f, w*f), about [-1, 1], not clamped."""
        x = self.conv_in(quantized)
        for block in self.blocks:
            x = block(x)
        return F.pixel_shuffle(self.conv_out(self.norm_out(x.to(self.conv_out.weight.dtype))), FOLD)


def _initialize(network: CompactEncoder | CompactDecoder) -> None:
    """Draw the weights of convolutions with variance 1 / inputs; blocks start as the identity."""
    if network.conv_out.weight.is_meta:  # nothing to draw, as in GSQ
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in network.blocks:
        if isinstance(block, CompactBlock):
            nn.init.zeros_(block.conv2.weight)
