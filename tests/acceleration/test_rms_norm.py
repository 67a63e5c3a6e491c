"""The fused norm: on the GPU where there is one, elsewhere in Triton's interpreter, by `test_fused.py`."""

import pytest
import torch
from interpreter import DEVICE, INTERPRETED, runs_kernels

from gsqtok.acceleration import accelerate
from gsqtok.networks import CompactDecoder, CompactEncoder
from gsqtok.networks.compact import RMSNorm

pytest.importorskip("triton")


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("channels", "dtype", "capability"), [(384, torch.bfloat16, 90), (96, torch.float32, 80)])
def test_kernels_compile_for_gpus_of_two_generations(channels, dtype, capability, monkeypatch):
    from compiling import compiled, launches

    from gsqtok.acceleration import rms_norm_triton

    x = torch.zeros(2, channels, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    one = torch.ones(channels)

    def both():
        out = rms_norm_triton.RMSNormSiLU.apply(x, one, one, 1e-6)
        out.backward(torch.zeros_like(out))

    found = launches(rms_norm_triton, both, monkeypatch)
    assert len(found) == 2
    for launch in found:
        assert compiled(*launch, capability).metadata.shared <= 99 << 10  # of a block on the smaller GPUs


def inputs(channels, dtype=torch.float32, size=(2, 5, 7)):
    torch.manual_seed(0)
    batch, height, width = size
    x = torch.randn(batch, channels, height, width, device=DEVICE)
    x = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
    norm = RMSNorm(channels).to(DEVICE)
    accelerate(norm)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    return x, norm, torch.randn(x.shape, device=DEVICE)


def plain(norm, x):
    """In float64, with channels outermost, which no kernel takes."""
    copy = RMSNorm(len(norm.weight)).double()
    copy.load_state_dict(norm.state_dict())
    x = x.detach().cpu().double().contiguous().requires_grad_()
    return copy, x, copy(x)


def distance(found, expected):
    return float((found.cpu().double() - expected).norm() / expected.norm())


@runs_kernels
@pytest.mark.parametrize(
    ("channels", "dtype", "tolerance"),
    [(32, torch.float32, 1e-6), (96, torch.float32, 1e-6), (160, torch.bfloat16, 1e-2)],
)
def test_values_and_gradients(channels, dtype, tolerance):
    x, norm, grad = inputs(channels, dtype)
    out = norm(x)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    copy, given, expected = plain(norm, x)
    assert distance(out.detach(), expected.detach()) < tolerance
    found = torch.autograd.grad(out, [x, norm.weight, norm.bias], grad.to(dtype))
    wanted = torch.autograd.grad(expected, [given, copy.weight, copy.bias], grad.to(dtype).cpu().double())
    for one, other in zip(found, wanted, strict=True):
        assert distance(one, other) < tolerance


@runs_kernels
def test_many_rows_share_programs(monkeypatch):
    from gsqtok.acceleration import rms_norm_triton

    monkeypatch.setattr(rms_norm_triton, "PROGRAMS", 3)
    x, norm, grad = inputs(32, size=(3, 17, 19))
    found = torch.autograd.grad(norm(x), [x, norm.weight], grad)
    copy, given, expected = plain(norm, x)
    wanted = torch.autograd.grad(expected, [given, copy.weight], grad.cpu().double())
    for one, other in zip(found, wanted, strict=True):
        assert distance(one, other) < 1e-6


@runs_kernels
def test_networks_run_by_it(monkeypatch):
    from gsqtok.acceleration.rms_norm_triton import RMSNormSiLU

    ran, run = [], RMSNormSiLU.forward
    monkeypatch.setattr(RMSNormSiLU, "forward", lambda *inputs: ran.append(1) or run(*inputs))
    torch.manual_seed(0)
    for network, channels in ((CompactEncoder(4, (32, 64), (1, 1)), 3), (CompactDecoder(4, (32, 64), (1, 1)), 4)):
        for block in network.blocks:
            if hasattr(block, "conv2"):
                torch.nn.init.normal_(block.conv2.weight, std=0.05)
        x = torch.randn(1, channels, 8, 12)
        with torch.no_grad():
            expected = network.double()(x.double())
            accelerate(network)
            network.float().to(DEVICE, memory_format=torch.channels_last)
            with torch.backends.cudnn.flags(allow_tf32=False):  # which would round the convolutions to 10 bits
                found = network(x.to(DEVICE, memory_format=torch.channels_last))
        assert distance(found, expected) < 1e-5
        assert len(ran) == sum(isinstance(module, RMSNorm) for module in network.modules())
        ran.clear()
