import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gsqtok.acceleration import accelerate
from gsqtok.acceleration.backend import Backend
from gsqtok.networks import CompactEncoder, Decoder, Encoder

SHAPE = (4, 32, (1, 2), (1, 1), 1, True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def fast(monkeypatch):
    """The networks that ran by the operators for a CPU."""
    ran = []
    run = Backend.run
    monkeypatch.setattr(Backend, "run", lambda self, network, x: ran.append(network) or run(self, network, x))
    return ran


def pair():
    encoder = Encoder(*SHAPE), torch.randn(2, 3, 8, 12)
    decoder = Decoder(*SHAPE, adaptive_norm=True), torch.randn(2, 4, 4, 6)
    return [encoder, decoder]


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
    for network, x in (*pair(), (CompactEncoder(4, (32,), (1,)), torch.randn(2, 3, 8, 12))):
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
def test_a_single_position_and_an_empty_batch(fast):
    encoder, decoder = (network for network, _ in pair())
    for network, x in ((encoder, torch.randn(1, 3, 2, 2)), (decoder, torch.randn(1, 4, 1, 1))):
        plain = network(x)
        accelerate(network)
        torch.testing.assert_close(network(x), plain, atol=1e-4, rtol=0)  # four values a group
        assert network(x[:0]).shape == (0, *plain.shape[1:])
