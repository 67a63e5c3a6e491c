import math

import pytest
import torch
from torch.nn import functional as F

from gsqtok.networks.blocks import (
    AdaptiveGroupNorm,
    Attention,
    DepthToSpaceUpsample,
    Downsample,
    NearestUpsample,
    ResidualBlock,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def plain_group_norm(x, weight=None, bias=None, groups=32, eps=1e-5):
    """Group norm by its definition."""
    grouped = x.reshape(x.shape[0], groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    variance = ((grouped - mean) ** 2).mean(-1, keepdim=True)
    out = ((grouped - mean) / (variance + eps).sqrt()).view_as(x)
    return out if weight is None else out * weight[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize(("inside", "outside"), [(32, 32), (32, 64), (96, 32)])
def test_residual_block_keeps_size_and_changes_channels(inside, outside):
    assert ResidualBlock(inside, outside)(torch.randn(2, inside, 5, 3)).shape == (2, outside, 5, 3)


def test_residual_block_without_its_last_convolution_is_the_skip():
    x = torch.randn(1, 32, 4, 4)
    for block in (ResidualBlock(32, 32), ResidualBlock(32, 64)):
        torch.nn.init.zeros_(block.conv2.weight)
        torch.nn.init.zeros_(block.conv2.bias)
        torch.testing.assert_close(block(x), block.skip(x))
    assert torch.equal(ResidualBlock(32, 32).skip(x), x)


def test_residual_block_equals_its_formula():
    block = ResidualBlock(32, 64).double()
    x = torch.randn(2, 32, 4, 6, dtype=torch.float64)
    for norm in (block.norm1, block.norm2):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    h = plain_group_norm(x, block.norm1.weight, block.norm1.bias)
    h = F.conv2d(h * h.sigmoid(), block.conv1.weight, block.conv1.bias, padding=1)
    h = plain_group_norm(h, block.norm2.weight, block.norm2.bias)
    h = F.conv2d(h * h.sigmoid(), block.conv2.weight, block.conv2.bias, padding=1)
    expected = h + F.conv2d(x, block.skip.weight, block.skip.bias)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_attention_equals_a_softmax_by_hand(size):
    block = Attention(32).double()
    x = torch.randn(2, 32, *size, dtype=torch.float64)
    torch.nn.init.normal_(block.norm.weight)
    torch.nn.init.normal_(block.norm.bias)
    normed = plain_group_norm(x, block.norm.weight, block.norm.bias, eps=1e-6)
    rows = normed.flatten(2).transpose(1, 2)  # (B, positions, C)
    weight, bias = block.qkv.weight.flatten(1), block.qkv.bias
    q, k, v = (rows @ weight[i : i + 32].T + bias[i : i + 32] for i in (0, 32, 64))
    scores = q @ k.transpose(1, 2) / math.sqrt(32)
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    mixed = exponentials / exponentials.sum(-1, keepdim=True) @ v
    out = mixed @ block.proj.weight.flatten(1).T + block.proj.bias
    torch.testing.assert_close(block(x), x + out.transpose(1, 2).reshape(x.shape))


def test_attention_knows_no_positions():
    block = Attention(32).double()
    x = torch.randn(1, 32, 4, 4, dtype=torch.float64)
    order = torch.randperm(16)
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(block(shuffled).flatten(2), block(x).flatten(2)[:, :, order])


@pytest.mark.parametrize("size", [(2, 2), (8, 4)])
def test_downsample_halves(size):
    assert Downsample(32)(torch.randn(1, 32, *size)).shape == (1, 32, size[0] // 2, size[1] // 2)


def test_nearest_upsample_repeats_each_pixel():
    block = NearestUpsample(2)
    torch.nn.init.dirac_(block.conv.weight)
    torch.nn.init.zeros_(block.conv.bias)
    x = torch.randn(1, 2, 3, 4)
    torch.testing.assert_close(block(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("channels", [1, 3, 32])
def test_depth_to_space_is_pixel_shuffle_of_permuted_channels(channels):
    block = DepthToSpaceUpsample(channels)
    x = torch.randn(2, channels, 3, 5)
    convolved = block.conv(x)
    # DCR: channel (row, column, c); pixel_shuffle (CRD) wants (c, row, column).
    crd = convolved.unflatten(1, (2, 2, channels)).permute(0, 3, 1, 2, 4, 5).flatten(1, 3)
    assert torch.equal(block(x), F.pixel_shuffle(crd, 2))


def test_adaptive_norm_equals_a_plain_formula():
    block = AdaptiveGroupNorm(64, 8).double()
    for linear in (block.gamma, block.beta):
        torch.nn.init.normal_(linear.weight)
        torch.nn.init.normal_(linear.bias)
    x = torch.randn(2, 64, 6, 4, dtype=torch.float64)
    latent = torch.randn(2, 8, 3, 2, dtype=torch.float64)
    values = latent.flatten(2)
    mean = values.sum(-1) / 6
    std = (((values - mean[..., None]) ** 2).sum(-1) / 5 + 1e-6).sqrt()
    scale = std @ block.gamma.weight.T + block.gamma.bias
    bias = mean @ block.beta.weight.T + block.beta.bias
    expected = plain_group_norm(x, eps=1e-6) * scale[..., None, None] + bias[..., None, None]
    torch.testing.assert_close(block(x, latent), expected)


def test_adaptive_norm_starts_as_plain_group_norm():
    x, latent = torch.randn(2, 64, 6, 4), torch.randn(2, 8, 3, 2)
    expected = F.group_norm(x, 32, eps=1e-6)
    torch.testing.assert_close(AdaptiveGroupNorm(64, 8)(x, latent), expected)


def test_adaptive_norm_of_a_single_position_is_finite():
    block = AdaptiveGroupNorm(64, 8)
    torch.nn.init.normal_(block.gamma.weight)
    latent = torch.randn(2, 8, 1, 1, requires_grad=True)
    out = block(torch.randn(2, 64, 2, 2), latent)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert latent.grad.isfinite().all()


def test_adaptive_norm_of_a_constant_latent_has_a_finite_gradient():
    latent = torch.ones(1, 8, 2, 2, requires_grad=True)
    block = AdaptiveGroupNorm(32, 8)
    torch.nn.init.normal_(block.gamma.weight)
    block(torch.randn(1, 32, 4, 4), latent).square().sum().backward()
    assert latent.grad.isfinite().all()
