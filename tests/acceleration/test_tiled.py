import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from gsqtok.acceleration import tiled
from gsqtok.networks import CompactDecoder, CompactEncoder, Decoder, Encoder

OPTIONS = [
    {},
    {"depth_to_space": True},
    {"adaptive_norm": True},
    {"adaptive_norm": True, "depth_to_space": True, "middle_attention": True, "attention_factors": (2,)},
    {"compact": True},
]


def networks(factor, **options):
    torch.manual_seed(0)
    multipliers = {4: (1, 2, 1), 8: (1, 1, 2, 2)}[factor]  # channels that change either way
    if options.pop("compact", False):
        widths = [32 * multiplier for multiplier in multipliers[1:]]
        pair = CompactEncoder(5, widths, [1] * len(widths)), CompactDecoder(5, widths, [1] * len(widths))
        for block in (block for network in pair for block in network.blocks if hasattr(block, "conv2")):
            torch.nn.init.normal_(block.conv2.weight, std=0.05)  # zero, it would hide the block
    else:
        arguments = (5, 32, multipliers, [1] * len(multipliers), 2)
        shared = {k: v for k, v in options.items() if k in ("middle_attention", "attention_factors")}
        pair = Encoder(*arguments, **shared), Decoder(*arguments, **options)
    for network in pair:
        for name, parameter in network.named_parameters():  # initial norms and adaptive norms would hide mistakes
            if "norm" in name or "gamma" in name or "beta" in name:
                torch.nn.init.normal_(parameter, 0.5 if name.endswith("weight") else 0.0, 0.5)
    return pair


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("factor", "size", "tile"), [(4, (20, 28), 8), (8, (24, 40), 14), (4, (4, 36), 2)])
def test_equal_to_the_whole_in_float64(factor, size, tile, options):
    for network, channels, scale in zip(networks(factor, **options), (3, 5), (1, factor), strict=True):
        network.double()
        x = torch.randn(2, channels, size[0] // scale, size[1] // scale, dtype=torch.float64)
        before = x.clone()
        with torch.no_grad():
            expected = network(x)
        found = tiled.run(network, x, tile)
        assert found.shape == expected.shape
        assert relative(found, expected) < 1e-11
        assert torch.equal(x, before)


@pytest.mark.parametrize("options", OPTIONS)
def test_equal_to_the_whole_in_float32(options):
    for network, channels, size in zip(networks(4, **options), (3, 5), (32, 8), strict=True):
        x = torch.randn(1, channels, size, size + 4)
        with torch.no_grad():
            expected = network(x)
        assert relative(tiled.run(network, x, 12), expected) < 2e-5


class Adapter(nn.Module):
    """What LoRA puts around a convolution."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight = base, base.weight
        self.down = nn.Conv2d(base.in_channels, 2, base.kernel_size, base.stride, base.padding, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def weight_norm(conv):
    conv = parametrizations.weight_norm(conv)
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(1.5)
    return conv


def hooked(conv):
    conv.register_forward_hook(lambda _, __, out: out.cos())
    return conv


@pytest.mark.parametrize("change", [Adapter, weight_norm, hooked])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]])
def test_convolutions_are_called_whatever_became_of_them(options, change):
    for network, channels, scale in zip(networks(4, **options), (3, 5), (1, 4), strict=True):
        x = torch.randn(1, channels, 24 // scale, 16 // scale, dtype=torch.float64)
        with torch.no_grad():
            before = network.double()(x)
            for parent in list(network.modules()):
                for name, conv in list(parent.named_children()):
                    if type(conv) is nn.Conv2d and not isinstance(parent, Adapter):
                        setattr(parent, name, change(conv))
            expected = network.double()(x)
        assert relative(tiled.run(network, x, 6), expected) < 1e-11
        assert relative(before, expected) > 1e-2


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("blocks.0", hooked, r"ResidualBlock \(blocks.0\) cannot run in tiles: it has hooks"),
        ("blocks.0.norm2", hooked, r"GroupNorm \(blocks.0.norm2\)"),
        ("norm_out", lambda _: nn.Identity(), r"Identity \(norm_out\)"),
        ("blocks.1", lambda _: nn.Identity(), r"Identity \(blocks.1\)"),
        ("blocks.0.conv1", lambda _: nn.Conv2d(32, 32, 5, padding=2), "looks further than a tile's border"),
    ],
)
def test_what_cannot_run_in_tiles_is_refused_by_name(name, change, message):
    network, _ = networks(4)
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, change(network.get_submodule(name)))
    with pytest.raises(TypeError, match=message):
        tiled.run(network, torch.zeros(1, 3, 8, 8), 4)


def test_a_mean_far_from_zero_keeps_its_variance():
    """One pass over sums of squares would lose all digits."""
    x = (torch.randn(1, 64, 20, 20, dtype=torch.float64) + 1e4).float()
    full = tiled.FeatureMap(torch.empty_like(x))
    for window in tiled.Tiled(6, torch.device("cpu")).windows(x):
        top, bottom, left, right = window
        full.write(window, x[:, :, top:bottom, left:right], normed=True)
    groups = x.double().view(1, 32, -1)
    torch.testing.assert_close(full.mean, groups.mean(2), rtol=1e-6, atol=0)
    torch.testing.assert_close(full.squares / full.count, groups.var(2, correction=0), rtol=1e-3, atol=0)


class Largest(TorchDispatchMode):
    """The most values that any operator computes; views compute none, and maps come from ``empty``."""

    def __init__(self):
        super().__init__()
        self.computed = 0
        self.maps = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(argument.alias_info for argument in func._schema.returns):
            return out
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                kind = "maps" if "empty" in str(func) else "computed"
                setattr(self, kind, max(getattr(self, kind), tensor.numel()))
        return out


@pytest.mark.parametrize("options", OPTIONS[:3])
def test_what_is_computed_at_a_time_depends_on_the_tile_alone(options):
    tile = 16
    for network, channels, scale in zip(networks(4, **options), (3, 5), (1, 4), strict=True):
        found = []
        for size in (48, 96):
            x = torch.randn(1, channels, size // scale, size // scale)
            with Largest() as largest:
                tiled.run(network, x, tile)
            found.append(largest.computed)
            assert largest.maps >= 32 * size * size
        assert found[0] == found[1] <= 64 * (tile + 4) ** 2  # 64 channels
        with Largest() as largest, torch.no_grad():
            network(x)
        assert largest.computed >= 32 * 96 * 96  # what the whole takes


@pytest.mark.parametrize("options", OPTIONS)
def test_progress_counts_every_tile_to_the_last(options):
    for network, channels, scale in zip(networks(8, **options), (3, 5), (1, 8), strict=True):
        told = []
        x = torch.randn(1, channels, 40 // scale, 56 // scale)
        tiled.run(network, x, 6, lambda *numbers: told.append(numbers))  # noqa: B023
        total = tiled.count(network, x.shape[2:], 6)
        assert total > 7 * 10  # of the layers at full resolution
        assert told == [(n, total) for n in range(1, total + 1)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_maps_stay_in_host_memory():
    peaks = []
    for size in (256, 512):
        for network, channels, scale in zip(networks(4), (3, 5), (1, 4), strict=True):
            network.cuda()
            x = torch.randn(1, channels, size // scale, size // scale)
            torch.cuda.reset_peak_memory_stats()
            out = tiled.run(network, x, 64)
            assert out.device.type == "cpu"
            peaks.append(torch.cuda.max_memory_allocated())
            with torch.no_grad():
                assert relative(out, network(x.cuda()).cpu()) < 1e-2  # TF32
    assert peaks[2] <= 1.1 * peaks[0]
    assert peaks[3] <= 1.1 * peaks[1]


@pytest.mark.parametrize("tile", [0, -2, 7])
def test_impossible_tiles(tile):
    with pytest.raises(ValueError, match="even number"):
        tiled.run(networks(4)[0], torch.zeros(1, 3, 8, 8), tile)
