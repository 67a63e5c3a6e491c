"""What the networks use on a CPU, against PyTorch's plain operators and float64."""

import pytest
import torch
from torch.nn import functional as F

from gsqtok.acceleration import accelerate, cpu
from gsqtok.acceleration.backend import Backend, Norm
from gsqtok.networks import Decoder, Encoder
from gsqtok.networks.blocks import NearestUpsample, ResidualBlock

LAST = torch.channels_last
CPU = Backend()


@pytest.fixture(autouse=True)
def _without_gradient():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("shape", [(2, 64, 96, 96), (1, 32, 333, 40), (1, 32, 125, 125), (3, 96, 8, 5), (1, 32, 2, 1)])
@pytest.mark.parametrize("own", [False, True])
def test_group_norm(shape, own):
    # a slope: stretches have means of their own
    x = (torch.randn(shape) + torch.linspace(-3, 8, shape[2])[:, None]).contiguous(memory_format=LAST)
    weight, bias = (torch.randn(shape[:2] if own else shape[1:2]) for _ in range(2))
    before = x.clone()
    out = cpu.group_norm(x, 32, weight, bias, 1e-5)
    assert out.is_contiguous(memory_format=LAST)
    assert torch.equal(x, before)
    expected = torch.group_norm(x.double(), 32, eps=1e-5)
    expected = expected * weight.double()[..., None, None] + bias.double()[..., None, None]
    torch.testing.assert_close(out.double(), expected, atol=3e-5, rtol=0)


def test_group_norm_stays_exact_in_large_images():
    x = (torch.randn(1, 32, 768, 768) * 2 + 2).contiguous(memory_format=LAST)
    expected = torch.group_norm(x.double(), 32, eps=1e-5)
    assert (cpu.group_norm(x, 32, torch.ones(32), torch.zeros(32), 1e-5) - expected).abs().max() < 3e-6


@pytest.mark.parametrize("size", [(6, 8), (96, 96)])
@pytest.mark.parametrize("own", [False, True])
def test_group_norm_of_means_far_above_the_deviation(size, own):
    x = (100 + torch.randn(2, 64, *size)).contiguous(memory_format=LAST)
    weight, bias = (torch.randn(2, 64) if own else torch.randn(64) for _ in range(2))
    expected = torch.group_norm(x.double(), 32, eps=1e-5) * weight[..., None, None] + bias[..., None, None]
    torch.testing.assert_close(cpu.group_norm(x, 32, weight, bias, 1e-5).double(), expected, atol=2e-4, rtol=0)


def test_group_norm_of_constant_groups_is_the_bias():
    x = torch.full((1, 32, 64, 64), 3.0).contiguous(memory_format=LAST)
    bias = torch.randn(32)
    torch.testing.assert_close(
        cpu.group_norm(x, 32, torch.ones(32), bias, 1e-5), bias[:, None, None].expand(1, 32, 64, 64), atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 7)])
def test_upsampling_is_repetition_and_convolution(size):
    up = NearestUpsample(32).double()
    x = torch.randn(2, 32, *size, dtype=torch.float64)
    torch.testing.assert_close(CPU.repeat(up.conv, x), up(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("block", [ResidualBlock(32, 64), ResidualBlock(64, 64)])
def test_blocks_leave_their_input_alone(block):
    x = torch.randn(2, block.conv1.in_channels, 8, 8).contiguous(memory_format=LAST)
    before = x.clone()
    out, _ = CPU._residual(block, x, None, x)
    assert torch.equal(x, before)
    torch.testing.assert_close(out, block(x.contiguous()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_activation_in_another_type(dtype):
    x = torch.randn(2, 64, 8, 8).to(torch.bfloat16, memory_format=LAST)
    weight, bias = torch.randn(64), torch.randn(64)
    before = x.clone()
    out = CPU.normalise(x, Norm(weight, bias, 32, 1e-5, True), None, dtype)
    assert torch.equal(x, before)
    expected = F.silu(torch.group_norm(x.float(), 32, weight, bias, 1e-5))
    torch.testing.assert_close(out, expected.to(dtype))


@pytest.mark.parametrize("options", [{}, {"adaptive_norm": True, "depth_to_space": True, "middle_attention": True}])
def test_a_batch_in_parts_is_the_batch(options, monkeypatch):
    common = {"latent_dim": 8, "channels": 32, "multipliers": (1, 2), "blocks": (1, 1), "middle_blocks": 2}
    attention = {"middle_attention": options.get("middle_attention", False)}
    seen = []
    for network, x in (
        (Encoder(**common, **attention), torch.randn(5, 3, 16, 24)),
        (Decoder(**common, **options), torch.randn(5, 8, 8, 12)),
    ):
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)  # adaptive norms begin as plain ones
        expected, before = network(x), x.clone()
        accelerate(network)
        network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        for pixels in (2**20, 2 * 16 * 24, 1):
            monkeypatch.setattr(cpu, "PIXELS", pixels)
            torch.testing.assert_close(cpu.run(network, x, 5 * 16 * 24), expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(x, before)
    assert seen == [5, 2, 2, 1, 1, 1, 1, 1, 1] * 2
