"""StyleGAN2's discriminator: its parts against scipy, float64 and closed forms."""

import math

import pytest
import torch
from scipy.ndimage import correlate1d
from torch.nn import functional as F

from gsqtok.discriminators import build_discriminator
from gsqtok.discriminators.stylegan import Blur, EqualisedConv, EqualisedLinear, ResidualDown, minibatch_deviation


def closed_form(channels, multipliers):
    total, before = 3 * channels + channels, channels
    for multiplier in multipliers:
        after = channels * multiplier
        total += (9 * before + 1) * before + (9 * before + 1) * after + before * after
        before = after
    return total + 9 * (before + 1) * before + before + 16 * before * before + before + before + 1


def test_parameters():
    for options in ({}, {"channels": 8, "multipliers": (1, 2)}):
        discriminator = build_discriminator("stylegan", **options)
        expected = closed_form(options.get("channels", 128), options.get("multipliers", (2, 4, 4, 4, 4)))
        assert sum(p.numel() for p in discriminator.parameters()) == expected
    assert closed_form(128, (2, 4, 4, 4, 4)) == 23_882_369


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (96, 160), (129, 128), (256, 256)])
def test_one_verdict_at_any_size(size):
    discriminator = build_discriminator("stylegan", channels=4)
    (logits,) = discriminator(torch.rand(2, 3, *size) * 2 - 1)
    assert logits.shape == (2, 1)
    assert logits[0] != logits[1]


def test_too_small_images_are_refused():
    with pytest.raises(ValueError, match="32 pixels a side or more, got 31 x 64"):
        build_discriminator("stylegan", channels=4)(torch.zeros(1, 3, 31, 64))
    with pytest.raises(ValueError, match="multipliers"):
        build_discriminator("stylegan", multipliers=())


def test_blur_equals_scipy():
    x = torch.rand(2, 3, 9, 8, dtype=torch.float64)
    padded = F.pad(x, (4, 4, 4, 4)).numpy()
    taps = [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    blurred = torch.from_numpy(correlate1d(correlate1d(padded, taps, 2, origin=0), taps, 3, origin=0))
    # scipy centres four taps on the third: position i looks at i - 2 .. i + 1
    full = Blur()(x, padding=2)
    torch.testing.assert_close(full, blurred[:, :, 4:14, 4:13])
    torch.testing.assert_close(Blur()(x, padding=1, stride=2), full[:, :, 1:-1:2, 1:-1:2])
    assert torch.allclose(Blur()(torch.ones(1, 2, 8, 8), padding=0), torch.ones(1, 2, 5, 5))  # keeps the mean


@pytest.mark.parametrize("size", [(2, 2), (8, 12), (7, 5)])
def test_block_equals_the_paper_written_out(size):
    torch.manual_seed(0)
    block = ResidualDown(3, 5).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8

    def blur(x, padding):
        x = F.pad(x, [padding] * 4)
        return x.unfold(2, 4, 1).unfold(3, 4, 1).mul(taps[:, None] * taps).sum((-1, -2))

    def activation(x):
        return math.sqrt(2) * torch.where(x > 0, x, 0.2 * x)

    main = activation(F.conv2d(x, block.conv1.weight / math.sqrt(27), padding=1))
    main = activation(F.conv2d(blur(main, 2), block.conv2.weight / math.sqrt(27), stride=2))
    skip = F.conv2d(blur(x, 1), block.skip.weight / math.sqrt(3), stride=2)  # blur, 1x1, every second position
    expected = (main + skip) / math.sqrt(2)
    assert expected.shape == (2, 5, size[0] // 2, size[1] // 2)
    torch.testing.assert_close(block(x), expected)


def test_equalised_layers_keep_the_variance_and_scale_the_step():
    torch.manual_seed(0)
    for layer, x in (
        (EqualisedConv(64, 256, 3, padding=0), torch.randn(8, 64, 6, 6)),
        (EqualisedLinear(512, 512), torch.randn(512, 512)),
    ):
        assert abs(layer.weight.std() - 1) < 0.02
        assert abs(layer(x).std() - 1) < 0.05
        fan_in = layer.weight[0].numel()
        before = layer.scale * layer.weight.detach().clone()
        layer(x).square().sum().backward()
        torch.optim.Adam(layer.parameters(), 0.1, (0.0, 0.99), eps=1e-12).step()
        moved = (layer.scale * layer.weight - before).abs()  # Adam's first step is the learning rate, all over
        torch.testing.assert_close(moved, torch.full_like(moved, 0.1 / math.sqrt(fan_in)), rtol=1e-2, atol=1e-5)


def test_minibatch_deviation_by_hand():
    # four images of one channel and two positions: one group
    x = torch.tensor([[1.0, 10], [2, 10], [3, 10], [6, 10]]).view(4, 1, 1, 2)
    deviation = math.sqrt((4 + 1 + 0 + 9) / 4)  # of 1, 2, 3, 6 about 3
    out = minibatch_deviation(x)
    assert torch.equal(out[:, :1], x)
    torch.testing.assert_close(out[:, 1:], torch.full((4, 1, 1, 2), deviation / 2), rtol=1e-4, atol=1e-4)
    # eight: images 0, 2, 4, 6 and images 1, 3, 5, 7
    many = torch.zeros(8, 1, 1, 2)
    many[::2] = x
    out = minibatch_deviation(many)[:, 1, 0, 0]
    torch.testing.assert_close(out, torch.tensor([deviation / 2, 1e-4] * 4), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (2, 2), (3, 3), (5, 1), (6, 3), (7, 1), (12, 4)])
def test_minibatch_deviation_of_any_batch(batch, group):
    x = torch.randn(batch, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    out = minibatch_deviation(x)
    assert out.shape == (batch, 4, 2, 4)
    for i in range(batch):
        members = x[i % (batch // group) :: batch // group]
        assert len(members) == group
        torch.testing.assert_close(out[i, 3], members.std(0, correction=0).mean().expand(2, 4), atol=1e-4, rtol=1e-4)
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_minibatch_deviation_is_computed_in_float32():
    x = 100 + torch.randn(4, 8, 4, 4).bfloat16() / 2
    expected = minibatch_deviation(x.double())[:, -1]
    out = minibatch_deviation(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out[:, -1].double(), expected, rtol=4e-3, atol=0)
