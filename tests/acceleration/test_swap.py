import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gsqtok.acceleration import accelerate
from gsqtok.acceleration.backend import Backend
from gsqtok.networks import CompactEncoder, Decoder, Encoder, blocks
from gsqtok.published import maskgit_net, taming_net

SHAPE = (4, 32, (1, 2), (1, 1), 1, True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def fast(monkeypatch):
    """The networks, and the blocks of others, that ran by the operators for a CPU."""
    ran = []
    for name in ("run", "alone"):
        run = getattr(Backend, name)
        monkeypatch.setattr(
            Backend, name, lambda self, module, *more, run=run: ran.append(module) or run(self, module, *more)
        )
    return ran


def pair():
    encoder = Encoder(*SHAPE), torch.randn(2, 3, 8, 12)
    decoder = Decoder(*SHAPE, adaptive_norm=True), torch.randn(2, 4, 4, 6)
    return [encoder, decoder]


def published():
    """Networks of another shape that are made of the same blocks."""
    taming = {"channels": 32, "widths": (32, 64), "blocks": 1, "attention": (1,), "latent_channels": 8, "dim": 4}
    yield taming_net.Encoder(**taming, kernel=1), torch.randn(2, 3, 8, 12)
    yield taming_net.Decoder(**taming, kernel=1), torch.randn(2, 4, 4, 6)
    yield maskgit_net.Decoder((32, 64), 1, 1, 4), torch.randn(2, 4, 4, 6)


def test_swapping_keeps_modules_and_names(fast):
    for network, x in pair():
        names, kind, modules = list(network.state_dict()), type(network), list(network.modules())
        with torch.no_grad():
            plain = network(x)
            assert not fast
            accelerate(nn.Sequential(network))
            torch.testing.assert_close(network(x), plain)
        assert fast.pop() is network
        assert isinstance(network, kind)
        assert list(network.state_dict()) == names
        assert list(network.modules()) == modules
        accelerate(network, enabled=False)
        assert type(network) is kind


@pytest.mark.parametrize("number", range(3))
@torch.no_grad()
def test_blocks_of_other_networks_run_fast_one_by_one(fast, number):
    network, x = list(published())[number]
    kinds, names, plain = list(map(type, network.modules())), list(network.state_dict()), network(x)
    residual = [module for module in network.modules() if isinstance(module, blocks.ResidualBlock)]
    inside = {part for block in residual for part in (block.norm1, block.norm2)}
    known = (blocks.ResidualBlock, blocks.NearestUpsample, blocks.GroupNorm)
    for _ in range(2):  # which is harmless
        accelerate(network)
        torch.testing.assert_close(network(x), plain, atol=1e-5, rtol=1e-4)
        assert set(fast) == {module for module in network.modules() if isinstance(module, known)} - inside
        fast.clear()
    assert list(network.state_dict()) == names
    accelerate(network, enabled=False)
    assert list(map(type, network.modules())) == kinds
    torch.testing.assert_close(network(x), plain, atol=0, rtol=0)
    assert not fast


@pytest.mark.parametrize(
    "name", ["mid.0.conv1", "mid.0.norm2", "mid.0", "mid.1.norm", "up.1.resample.conv", "norm_out"]
)
@torch.no_grad()
def test_changed_blocks_of_other_networks_are_called(name):
    network, x = list(published())[1]
    plain, calls = network(x), []
    hook = network.get_submodule(name).register_forward_hook(lambda _, __, out: calls.append(1) or out.cos())
    slow = network(x)
    accelerate(network)
    torch.testing.assert_close(network(x), slow, atol=1e-5, rtol=1e-4)
    assert len(calls) == 2
    assert not torch.allclose(slow, plain, atol=1e-3)
    hook.remove()
    torch.testing.assert_close(network(x), plain, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_norms_of_other_networks_are_exact_for_large_images():
    """PyTorch's own loses three digits where channels are innermost, as they are on a CPU."""
    norm = blocks.GroupNorm(32)
    x = (torch.randn(1, 32, 768, 768) * 2 + 2).contiguous(memory_format=torch.channels_last)
    expected = torch.group_norm(x.double(), 32, eps=norm.eps)
    accelerate(norm)
    assert (norm(x) - expected).abs().max() < 3e-6


def test_copies_are_fast_too_and_their_own(fast):
    for network, x in pair():
        accelerate(network)
        for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            with torch.no_grad():
                for parameter in copied.parameters():
                    parameter.mul_(2)
                found = copied(x)
                assert fast.pop() is copied
                accelerate(copied, enabled=False)
                torch.testing.assert_close(found, copied(x))
                assert not torch.allclose(found, network(x))
                fast.clear()


def test_subclasses_are_left_alone(fast):
    class Mine(Encoder):
        def forward(self, images):
            return -super().forward(images)

    network = Mine(*SHAPE)
    accelerate(network)
    assert type(network) is Mine


def test_gradients_are_those_of_the_plain_network(fast):
    for network, x in pair():
        found = []
        for enabled in (False, True):
            accelerate(network, enabled=enabled)
            source = x.clone().requires_grad_()
            out = network(source)
            found.append([out, *torch.autograd.grad(out.square().mean(), [source, *network.parameters()])])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not fast


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_compilers_and_exporters_get_the_plain_formula(fast):
    compact = CompactEncoder(4, (32,), (1,)), torch.randn(2, 3, 8, 12)
    for network, x in (*pair(), compact, list(published())[1]):
        plain = network(x)
        accelerate(network)
        for made in (
            torch.compile(network, backend="eager", fullgraph=True),
            torch.export.export(network, (x,)).module(),
            torch.jit.trace(network, x, check_trace=False),
        ):
            torch.testing.assert_close(made(x), plain)
        torch.compiler.reset()
    assert not fast


@torch.no_grad()
def test_other_kinds_of_tensors_get_the_plain_formula(fast):
    with FakeTensorMode():
        for network, x in pair():
            accelerate(network)
            assert network(x).shape[0] == 2
    for network, x in pair():
        accelerate(network.to("meta"))
        assert network(x.to("meta")).shape[0] == 2
    assert not fast


@torch.no_grad()
def test_transforms_get_the_plain_formula(fast):
    for network, x in (*pair(), list(published())[1]):
        plain = network(x)
        accelerate(network)
        found = torch.func.vmap(network)(x[:, None])
        torch.testing.assert_close(found[:, 0], plain, atol=1e-5, rtol=1e-4)
        _, slope = torch.func.jvp(network, (x,), (torch.ones_like(x),))
        accelerate(network, enabled=False)
        torch.testing.assert_close(slope, torch.func.jvp(network, (x,), (torch.ones_like(x),))[1])
    assert not fast


@torch.no_grad()
def test_a_single_position_and_an_empty_batch(fast):
    encoder, decoder = (network for network, _ in pair())
    for network, x in ((encoder, torch.randn(1, 3, 2, 2)), (decoder, torch.randn(1, 4, 1, 1))):
        plain = network(x)
        accelerate(network)
        torch.testing.assert_close(network(x), plain, atol=1e-4, rtol=0)  # four values a group
        assert network(x[:0]).shape == (0, *plain.shape[1:])
