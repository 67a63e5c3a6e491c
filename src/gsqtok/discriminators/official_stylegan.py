"""The StyleGAN discriminator of the paper's own code, with which the paper's trainings ended in NaN.

It is StyleGAN's (Karras, Laine, Aila, "A Style-Based Generator Architecture", CVPR 2019, arXiv 1812.04948) blur with
residual blocks, without what keeps StyleGAN2's activations and steps in bounds (`gsqtok.discriminators.stylegan`): the
two ways of a block are added as they are, so that variances add up, layers have PyTorch's weights and no equalised
learning rate, and nothing compares the images of a batch. Written from that description; where in a block the blur
stands is as in StyleGAN2's skip.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.discriminators.stylegan import HEAD_SIZE, Blur, StyleGANDiscriminator


class OfficialStyleGANDiscriminator(StyleGANDiscriminator):
    """Residual blocks that blur (1, 2, 1) and halve by averaging, then two fully connected layers."""

    def build(self, widths: Sequence[int]) -> None:
        """See ``StyleGANDiscriminator.build``."""
        last = widths[-1]
        self.from_rgb = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*(UnscaledDown(before, after) for before, after in pairwise(widths)))
        self.final = nn.Conv2d(last, last, 3, padding=1)
        self.hidden = nn.Linear(last * HEAD_SIZE**2, last)
        self.verdict = nn.Linear(last, 1)

    def judged(self, images: Tensor) -> Tensor:
        """See ``StyleGANDiscriminator.judged``."""
        x = self.blocks(_activate(self.from_rgb(images)))
        x = F.adaptive_avg_pool2d(_activate(self.final(x)), HEAD_SIZE)
        verdict: Tensor = self.verdict(_activate(self.hidden(x.flatten(1))))
        return verdict


class UnscaledDown(nn.Module):
    """Two 3x3 convolutions beside a 1x1, both ways blurred and halved, and added as they are.

    A blur by 1, 2, 1 and an average over 2 x 2 positions are one blur by 1, 3, 3, 1 at every second position.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.blur = Blur()
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H // 2, W // 2)."""
        h = self.blur(_activate(self.conv1(x)), padding=1, stride=2)
        return _activate(self.conv2(h)) + self.skip(self.blur(x, padding=1, stride=2))


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)
