"""The official StyleGAN discriminator: its blur and block written out in float64, and what grows in it."""

import pytest
import torch
from torch.nn import functional as F

from gsqtok.discriminators import OfficialStyleGANDiscriminator, build_discriminator
from gsqtok.discriminators.official_stylegan import UnscaledDown
from gsqtok.discriminators.stylegan import EqualisedConv, EqualisedLinear, ResidualDown


def blur_and_average(x):
    """1, 2, 1 along both sides with zeros around, then the mean of each 2 x 2 positions."""
    taps = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype) / 4
    kernel = taps.outer(taps).expand(x.shape[1], 1, 3, 3)
    return F.avg_pool2d(F.conv2d(x, kernel, padding=1, groups=x.shape[1]), 2)


@pytest.mark.parametrize("size", [(2, 2), (8, 12), (7, 5)])
def test_block_written_out_in_float64(size):
    torch.manual_seed(0)
    block = UnscaledDown(3, 5).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)

    def activate(x):
        return torch.where(x > 0, x, 0.2 * x)

    h = activate(F.conv2d(x, block.conv1.weight, block.conv1.bias, padding=1))
    h = activate(F.conv2d(blur_and_average(h), block.conv2.weight, block.conv2.bias, padding=1))
    torch.testing.assert_close(block(x), h + F.conv2d(blur_and_average(x), block.skip.weight))


def test_what_it_leaves_out():
    discriminator = build_discriminator("stylegan", official=True, channels=8)
    assert isinstance(discriminator, OfficialStyleGANDiscriminator)
    assert not any(isinstance(m, EqualisedConv | EqualisedLinear) for m in discriminator.modules())
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    (together,) = discriminator(images)
    alone = torch.cat([discriminator(images[i : i + 1])[0] for i in range(4)])
    torch.testing.assert_close(together, alone)  # nothing compares the images of a batch
    wide = build_discriminator("stylegan", official=True)
    assert [block.conv2.out_channels for block in wide.blocks] == [256, 512, 512, 512, 512]


def test_variances_add_up_where_stylegan2_keeps_them():
    """With identities in both ways, the way that is not scaled doubles what comes in."""
    x = torch.rand(1, 4, 8, 8) + 0.5
    with torch.no_grad():
        plain, scaled = UnscaledDown(4, 4), ResidualDown(4, 4)
        for block, half in ((plain, 1.0), (scaled, 0.5**0.5)):
            for parameter in block.parameters():
                parameter.zero_()
            scale = getattr(block.skip, "scale", 1.0)
            block.skip.weight[:, :, 0, 0] = torch.eye(4) / scale
            torch.testing.assert_close(block(x), half * blur_and_average(x))


def test_bad_input():
    with pytest.raises(ValueError, match="32 pixels a side or more, got 31 x 64"):
        build_discriminator("stylegan", official=True, channels=4)(torch.zeros(1, 3, 31, 64))
    with pytest.raises(ValueError, match="multipliers"):
        build_discriminator("stylegan", official=True, multipliers=())
    with pytest.raises(ValueError, match=r"'filters'; known: channels, multipliers$"):
        build_discriminator("stylegan", official=True, filters=1)
