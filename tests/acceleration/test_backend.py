"""What the backends do not know is called as the plain network calls it: each module of each network, changed in turn.

Here by the CPU's operators; `test_fused.py` runs this file in Triton's interpreter, where the kernels run.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from gsqtok.acceleration import accelerate, recompute
from gsqtok.acceleration.backend import Backend, folded, kind_of, known
from gsqtok.acceleration.fused import Fused
from gsqtok.networks import Decoder, Encoder, blocks
from gsqtok.published import taming_net
from gsqtok.search.launches import kernels_run_on

INTERPRETED = kernels_run_on(torch.device("cpu"))
BACKEND = Fused if INTERPRETED else Backend
in_full = pytest.mark.skipif(INTERPRETED, reason="the interpreter takes half a second a network")


class Adapter(nn.Module):
    """What LoRA puts around a convolution: other parameters, the same attributes."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(base.in_channels, 2, base.kernel_size, base.stride, base.padding, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    @property
    def weight(self):
        return self.base.weight

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Unknown(nn.Module):
    """A norm that does not depend on the size."""

    def forward(self, x):
        return F.silu(x * x.square().mean(1, keepdim=True).add(1e-6).rsqrt())


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(blocks, "NORM_GROUPS", 1 if INTERPRETED else 4)


def pairs():
    """Networks with every kind of block, and inputs."""
    shape = (3, 8, (1, 2), (1, 1), 1, False, (2,))
    options = [{"adaptive_norm": True}, {"depth_to_space": True}]
    made = [(Encoder(*shape), torch.randn(2, 3, 8, 4))]
    made += [(Decoder(*shape, **more), torch.randn(2, 3, 4, 2)) for more in options]
    for network, x in made:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        yield network.to(memory_format=torch.channels_last), x


@pytest.fixture
def normalised(monkeypatch):
    """How many norms a backend has computed."""
    calls = []
    computed = BACKEND.normalise
    monkeypatch.setattr(BACKEND, "normalise", lambda *a, **k: calls.append(1) or computed(*a, **k))
    return calls


def hook_output(module, calls):
    module.register_forward_hook(lambda _, __, out: calls.append("after") or out.cos())


def hook_input(module, calls):
    module.register_forward_pre_hook(lambda _, args: calls.append("before") or (args[0].cos(), *args[1:]))


def own_forward(module, calls):
    plain = type(module).forward
    module.forward = lambda *args: calls.append("own") or plain(module, *args).cos()  # as what moves weights about does


def outputs(network, x):
    """Of the accelerated network and of the plain one."""
    found = []
    for enabled in (True, False):
        accelerate(network, enabled=enabled)
        found.append(network(x))
    return found


@in_full
@pytest.mark.parametrize("change", [hook_output, hook_input, own_forward])
@pytest.mark.parametrize("number", range(3))
@torch.no_grad()
def test_every_module_is_called_once_it_is_changed(number, change):
    network, x = list(pairs())[number]
    plain = network(x)
    names = [name for name, module in network.named_modules() if name and not isinstance(module, nn.ModuleList)]
    for name in names:
        changed, calls = copy.deepcopy(network), []
        change(changed.get_submodule(name), calls)
        fast, slow = outputs(changed, x)
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
        adaptive = isinstance(network.get_submodule(name.rpartition(".")[0]), blocks.AdaptiveGroupNorm)
        if not (adaptive and name.endswith("norm")):  # whose plain formula does not call it either
            assert len(calls) == 2, name
            assert not torch.allclose(fast, plain, atol=1e-3), name


@in_full
@pytest.mark.parametrize("number", range(3))
@torch.no_grad()
def test_only_the_changed_block_is_left_to_pytorch(number, normalised):
    network, x = list(pairs())[number]
    accelerate(network)
    network(x)
    norms = sum(isinstance(module, blocks.GroupNorm | blocks.AdaptiveGroupNorm) for module in network.modules())
    assert len(normalised) == norms
    hook_output(network.get_submodule("blocks.0.conv1"), [])
    network(x)
    assert len(normalised) == norms + norms - 2


def weight_norm(conv):
    conv = parametrizations.weight_norm(conv)
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(1.5)
    return conv


def circular(conv):
    conv.padding_mode = "circular"
    conv._reversed_padding_repeated_twice = [n for n in reversed(conv.padding) for _ in range(2)]
    return conv


def without_bias(conv):
    conv.bias = None
    return conv


def exchanged(network, names, exchange):
    network = copy.deepcopy(network)
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, exchange(network.get_submodule(name)))
    return network.to(memory_format=torch.channels_last)


def assert_equal_gradients(fast, slow, network):
    parameters = list(network.parameters())
    found, expected = (torch.autograd.grad(out.square().mean(), parameters) for out in (fast, slow))
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, atol=1e-5, rtol=1e-3)


@in_full
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("exchange", [Adapter, weight_norm, circular, without_bias])
@pytest.mark.parametrize("number", range(3))
def test_convolutions_that_became_something_else(number, exchange, gradient):
    network, x = list(pairs())[number]
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        plain = network(x)
    # which convolution it is, all four show without gradients
    alone = names if not gradient or exchange is Adapter else []
    for some in [*([name] for name in alone), names]:
        changed = exchanged(network, some, exchange)
        with torch.set_grad_enabled(gradient):
            fast, slow = outputs(changed, x)
        torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-4)
        if exchange is not circular or network.get_submodule(some[0]).kernel_size != (1, 1):
            assert not torch.allclose(fast, plain, atol=1e-4), some
        if gradient:
            assert_equal_gradients(fast, slow, changed)


@pytest.mark.parametrize(
    ("number", "name", "change"),
    [
        (0, "conv_in", weight_norm),
        pytest.param(0, "blocks.0.conv1", circular, marks=in_full),
        pytest.param(0, "blocks.1.conv", Adapter, marks=in_full),
        (0, "blocks.2.skip", Adapter),  # behind what has left it its bias
        pytest.param(0, "blocks.4.qkv", weight_norm, marks=in_full),
        (0, "norm_out", hook_output),
        pytest.param(1, "blocks.1", hook_output, marks=in_full),
        (1, "blocks.4.conv", Adapter),
        (2, "blocks.3.conv", weight_norm),
    ],
)
def test_changed_parts_beside_fast_ones(number, name, change, normalised):
    network, x = list(pairs())[number]
    calls = []
    with torch.no_grad():
        plain = network(x)
    if change is hook_output:
        hook_output(network.get_submodule(name), calls)
    else:
        network = exchanged(network, [name], change)
    gradient = INTERPRETED and change is Adapter
    with torch.set_grad_enabled(gradient):
        fast, slow = outputs(network, x)
    assert len(calls) == (2 if change is hook_output else 0)
    assert len(normalised) >= 3
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(fast, plain, atol=1e-4)
    if gradient:
        assert_equal_gradients(fast, slow, network)


@in_full
@pytest.mark.parametrize("gradient", [False, True])
def test_unknown_norms_stems_and_blocks(gradient, normalised):
    class Loud(blocks.Downsample):
        def forward(self, x):
            return 3 * super().forward(x)

    encoder, x = next(pairs())
    for name, other in (
        ("conv_in", nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3, padding=1), nn.Upsample(scale_factor=2))),
        ("blocks.0.norm2", Unknown()),
        ("norm_out", Unknown()),
        ("blocks.1", Loud(8)),
    ):
        changed = copy.deepcopy(encoder)
        parent, _, child = name.rpartition(".")
        setattr(changed.get_submodule(parent), child, other)
        with torch.set_grad_enabled(gradient):
            fast, slow = outputs(changed, x)
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    assert bool(normalised) != gradient


def test_a_network_with_more_parts_is_plain(normalised):
    encoder, x = next(pairs())
    encoder.more = nn.Identity()
    accelerate(encoder)
    with torch.no_grad():
        encoder(x)
    assert not normalised


@torch.no_grad()
def test_exchanged_parameters_and_hooks_of_all_modules(normalised):
    network, x = next(pairs())
    accelerate(network)
    doubled = {name: 2 * parameter for name, parameter in network.named_parameters()}
    fast = torch.func.functional_call(network, doubled, (x,))
    accelerate(network, enabled=False)
    torch.testing.assert_close(fast, torch.func.functional_call(network, doubled, (x,)))
    accelerate(network)
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        network(x)
    finally:
        handle.remove()
    assert {module for module in network.modules() if not isinstance(module, nn.ModuleList)} == seen
    assert not normalised


def test_hooks_of_all_modules_on_gradients(normalised):
    network, x = next(pairs())
    accelerate(network)
    seen = set()
    handle = nn.modules.module.register_module_full_backward_hook(lambda module, *_: seen.add(module))
    try:
        network(x).sum().backward()
    finally:
        handle.remove()
    assert {module for module in network.modules() if not isinstance(module, nn.ModuleList)} == seen
    assert not normalised


@pytest.mark.parametrize("number", [1] if INTERPRETED else range(3))
def test_recomputed_blocks(number, normalised):
    network, x = list(pairs())[number]
    results = []
    for fast, levels in ((False, 0), (True, 1), (False, 1)):
        accelerate(network, enabled=fast)
        recompute(network, levels=levels)
        out = network(x)
        results.append([out, *torch.autograd.grad(out.square().mean(), list(network.parameters()))])
    for found in results[1:]:
        for f, e in zip(found, results[0], strict=True):
            torch.testing.assert_close(f, e, atol=1e-5, rtol=1e-3)
    assert bool(normalised) == INTERPRETED


@pytest.mark.parametrize("gradient", [True] if INTERPRETED else [False, True])
def test_blocks_of_other_networks(gradient, normalised):
    taming = {"channels": 8, "widths": (8, 16), "blocks": 0, "attention": (), "latent_channels": 8, "dim": 4}
    network, x = taming_net.Decoder(**taming, kernel=1).to(memory_format=torch.channels_last), torch.randn(1, 4, 2, 3)
    with torch.set_grad_enabled(gradient):
        fast, slow = outputs(network, x)
    norms = sum(isinstance(module, blocks.GroupNorm) for module in network.modules())
    assert len(normalised) == (norms if INTERPRETED or not gradient else 0)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    if gradient:
        assert_equal_gradients(fast, slow, network)


def test_what_is_known():
    block = blocks.ResidualBlock(8, 16)
    assert known(block)
    assert kind_of(block.skip) == (1, 1)
    block.norm1 = nn.Identity()
    assert not known(block)
    assert kind_of(block.norm2) is blocks.GroupNorm
    assert kind_of(nn.GroupNorm(2, 4)) is None


def test_folding_is_repetition_before():
    weight, x = torch.randn(5, 3, 3, 3).double(), torch.randn(2, 3, 4, 6).double()
    repeated = F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1)
    small = F.conv_transpose2d(x, folded(weight).flip(2, 3).transpose(0, 1), stride=2, padding=1)
    torch.testing.assert_close(small, repeated)
