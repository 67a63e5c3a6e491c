"""The discriminator of StyleGAN2: residual blocks that shrink the image, then one verdict on the whole of it.

Karras, Laine, Aittala, Hellsten, Lehtinen, Aila, "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020,
arXiv 1912.04958, section 4.1 and appendix B. Equalised learning rate and minibatch standard deviation: Karras, Aila,
Laine, Lehtinen, "Progressive Growing of GANs", ICLR 2018, arXiv 1710.10196, sections 4.1 and 3. Blur before
down-sampling: Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019, arXiv 1904.11486.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.discriminators.augment import DiffAugment
from gsqtok.discriminators.base import Discriminator

HEAD_SIZE = 4  # positions of a side that the fully connected layers look at
_DEVIATION_GROUP = 4


class StyleGANDiscriminator(Discriminator):
    """StyleGAN2's residual discriminator, with the channels and depth that the GSQ paper uses.

    A level halves the image, down to 4 x 4 at 128 pixels and five levels, which is the original head. Larger
    images are averaged to 4 x 4 there, smaller ones repeated, so that one network judges every size.

    Args:
        channels: filters at the image's own size.
        multipliers: filters after each halving, as multiples of ``channels``.
        augment: see ``DiffAugment``.

    Shapes: images (B, 3, H, W) -> [(B, 1)].

    Raises:
        ValueError: no multipliers; an image of fewer than 2^levels pixels a side.
    """

    def __init__(
        self,
        channels: int = 128,
        multipliers: Sequence[int] = (2, 4, 4, 4, 4),
        augment: Sequence[str] | DiffAugment = (),
    ) -> None:
        super().__init__(augment)
        if not multipliers:
            raise ValueError("multipliers must name the filters of one level or more")
        self.smallest = 2 ** len(multipliers)
        self.build([channels, *(channels * multiplier for multiplier in multipliers)])

    def build(self, widths: Sequence[int]) -> None:
        """Make the layers for filters at the image's own size, and after each halving."""
        last = widths[-1]
        self.from_rgb: nn.Module = EqualisedConv(3, widths[0], 1)
        self.blocks = nn.Sequential(*(ResidualDown(before, after) for before, after in pairwise(widths)))
        self.final: nn.Module = EqualisedConv(last + 1, last, 3)
        self.hidden: nn.Module = EqualisedLinear(last * HEAD_SIZE**2, last)
        self.verdict: nn.Module = EqualisedLinear(last, 1)

    def logits(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one verdict an image, (B, 1)."""
        height, width = images.shape[-2:]
        if min(height, width) < self.smallest:
            raise ValueError(
                f"this discriminator needs images of {self.smallest} pixels a side or more, got {height} x {width}; "
                "fewer multipliers see smaller ones"
            )
        return [self.judged(images)]

    def judged(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), large enough -> (B, 1)."""
        x = self.blocks(activate(self.from_rgb(images)))
        x = F.adaptive_avg_pool2d(activate(self.final(minibatch_deviation(x))), HEAD_SIZE)
        verdict: Tensor = self.verdict(activate(self.hidden(x.flatten(1))))
        return verdict


class ResidualDown(nn.Module):
    """Two 3x3 convolutions beside a 1x1, both ways blurred and halved, added at equal variance."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = EqualisedConv(in_channels, in_channels, 3)
        self.blur = Blur()
        self.conv2 = EqualisedConv(in_channels, out_channels, 3, stride=2, padding=0)
        self.skip = EqualisedConv(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H // 2, W // 2)."""
        h = activate(self.conv1(x))
        h = activate(self.conv2(self.blur(h, padding=2)))
        return (h + self.skip(self.blur(x, padding=1, stride=2))) * math.sqrt(0.5)


class Blur(nn.Module):
    """Each channel smoothed by the filter 1, 3, 3, 1 (over 8) along both sides."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", taps.outer(taps)[None, None], persistent=False)

    def forward(self, x: Tensor, padding: int, stride: int = 1) -> Tensor:
        """(B, C, H, W) -> (B, C, h, w), with ``padding`` zeros around, at every ``stride``-th position."""
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, 4, 4)
        return F.conv2d(x, kernel, padding=padding, stride=stride, groups=channels)


class EqualisedConv(nn.Module):
    """A convolution whose weights are kept ~ N(0, 1) and scaled by He's constant when used.

    Adam's steps do not depend on a gradient's scale: so every layer learns at the same relative speed.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = 1 / math.sqrt(in_channels * kernel**2)
        self.stride = stride
        self.padding = kernel // 2 if padding is None else padding

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, h, w)."""
        return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)


class EqualisedLinear(nn.Module):
    """A fully connected layer, scaled likewise."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = 1 / math.sqrt(in_features)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) -> (B, out_features)."""
        return F.linear(x, self.weight * self.scale, self.bias)


def activate(x: Tensor) -> Tensor:
    """LeakyReLU 0.2, scaled to keep the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def minibatch_deviation(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C + 1, H, W): a channel that says how much the images of the batch differ.

    The standard deviation over a group of images, averaged over channels and positions, one number a group. Groups
    are of 4 images, or of the largest smaller number that divides the batch: image i goes with i + B/4, i + B/2
    and i + 3B/4. A batch of one does not vary.
    """
    batch, _, height, width = x.shape
    size = next(size for size in range(_DEVIATION_GROUP, 0, -1) if batch % size == 0)
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    grouped = values.view(size, batch // size, *x.shape[1:])
    deviation = (grouped.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))  # (B / size,)
    channel = deviation.repeat(size).view(batch, 1, 1, 1).expand(batch, 1, height, width)
    return torch.cat([x, channel.to(x.dtype)], 1)
