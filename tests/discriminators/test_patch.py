"""PatchGAN: parameters and receptive field against closed forms, the layers against pix2pix's description."""

import pytest
import torch
from torch import nn

from gsqtok.discriminators import build_discriminator


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def closed_form(channels, layers):
    """4x4 convolutions; a bias in the first and the last; scale and shift of the normalisation in between."""
    total, width = 3 * channels * 16 + channels, channels
    for i in range(1, layers + 1):
        after = channels * min(2**i, 8)
        total += width * after * 16 + 2 * after
        width = after
    return total + width * 16 + 1


def test_parameters():
    assert parameters(build_discriminator("patch")) == closed_form(64, 3) == 2_765_633
    # pix2pix's own count, known from its training log, with pairs of images (6 channels) instead of 3
    assert 2_765_633 + 3 * 64 * 16 == 2_768_705
    for channels, layers in [(32, 1), (16, 2), (32, 4), (16, 5)]:
        discriminator = build_discriminator("patch", channels=channels, layers=layers)
        assert parameters(discriminator) == closed_form(channels, layers)


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70), (4, 142)])  # appendix 6.1.2
def test_receptive_field(layers, field):
    discriminator = build_discriminator("patch", channels=16, layers=layers)
    for module in discriminator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().track_running_stats = True  # statistics of the batch would join every pixel
            module.running_mean, module.running_var = torch.zeros(module.num_features), torch.ones(module.num_features)
    images = torch.rand(1, 3, 256, 256, requires_grad=True)
    (logits,) = discriminator(images)
    middle = logits.shape[2] // 2
    logits[0, 0, middle, middle].backward()
    for dim in (2, 3):
        seen = images.grad.abs().sum([d for d in range(4) if d != dim]).nonzero().flatten()
        assert seen[-1] - seen[0] + 1 == len(seen) == field


def test_output_size():
    for layers in (2, 3):
        discriminator = build_discriminator("patch", channels=16, layers=layers)
        for size in (64, 128):
            side = size // 2**layers - 2
            assert discriminator(torch.zeros(2, 3, size, size))[0].shape == (2, 1, side, side)
    smallest = discriminator.smallest
    assert smallest == 24
    assert discriminator(torch.zeros(1, 3, smallest, smallest))[0].shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="24 pixels a side or more, got 64 x 23"):
        discriminator(torch.zeros(1, 3, 64, 23))


def test_equals_the_layers_written_out_in_float64():
    torch.manual_seed(0)
    discriminator = build_discriminator("patch", channels=4).double()
    images = torch.rand(3, 3, 48, 40, dtype=torch.float64)
    weights = [p.detach() for p in discriminator.parameters()]
    assert len(weights) == 2 + 3 * 3 + 2

    def leaky(x):
        return torch.where(x > 0, x, 0.2 * x)

    def normalise(x, scale, shift):
        centred = x - x.mean((0, 2, 3), keepdim=True)
        deviation = (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        return centred / deviation * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    def convolve(x, weight, stride):
        columns = nn.functional.unfold(x, 4, padding=1, stride=stride)
        side = [(n + 2 - 4) // stride + 1 for n in x.shape[2:]]
        return (weight.flatten(1) @ columns).view(len(x), -1, *side)

    x = leaky(convolve(images, weights[0], 2) + weights[1].view(1, -1, 1, 1))
    for i, stride in enumerate((2, 2, 1)):
        weight, scale, shift = weights[2 + 3 * i : 5 + 3 * i]
        x = leaky(normalise(convolve(x, weight, stride), scale, shift))
    expected = convolve(x, weights[-2], 1) + weights[-1]
    (logits,) = discriminator(images)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, expected)


def test_initialisation():
    torch.manual_seed(0)
    for module in build_discriminator("patch").modules():
        if isinstance(module, nn.Conv2d):
            assert abs(module.weight.std() / 0.02 - 1) < 0.05
            assert abs(module.weight.mean()) < 0.002
        if isinstance(module, nn.BatchNorm2d):
            assert abs(module.weight.mean() - 1) < 0.01
            assert 0.01 < module.weight.std() < 0.03
        if getattr(module, "bias", None) is not None:
            assert not module.bias.any()


def test_norms_and_the_rest_of_the_batch():
    images = torch.rand(3, 3, 64, 64)
    for norm, alone in (("batch", False), ("group", True)):
        discriminator = build_discriminator("patch", channels=16, norm=norm)
        same = torch.allclose(discriminator(images)[0][:1], discriminator(images[:1])[0], atol=1e-6)
        assert same == alone


def test_joins_ranks_with_torchs_own_conversion():
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(build_discriminator("patch", channels=16))
    assert sum(isinstance(m, nn.SyncBatchNorm) and not m.track_running_stats for m in converted.modules()) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layers": 0}, "layers"), ({"norm": "layer"}, "norm"), ({"norm": "group", "channels": 20}, "multiple of 16")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_discriminator("patch", **options)
