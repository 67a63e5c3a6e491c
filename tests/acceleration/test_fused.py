"""The fused stages: on the GPU where there is one, elsewhere their logic in Triton's interpreter, in a process apart
since the interpreter has to be chosen before Triton is imported."""

import copy
from pathlib import Path

import pytest
import torch
from interpreter import DEVICE, INTERPRETED, check_in_interpreter, runs_interpreter, runs_kernels
from torch.nn import functional as F

from gsqtok.acceleration import accelerate, fused
from gsqtok.acceleration.backend import Norm

pytest.importorskip("triton")
FUSED = fused.Fused()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@runs_interpreter
def test_kernels_in_the_interpreter(pytestconfig):
    marked = pytestconfig.getoption("markexpr")  # slow ones where they are run here
    files = [Path(__file__).with_name(f"test_{name}.py") for name in ("fused", "backend", "rms_norm")]
    check_in_interpreter(*files, Path(__file__).parents[1] / "quantizers/test_fused.py", marked=marked)


@pytest.mark.skipif(INTERPRETED, reason="asks what happens without the interpreter")
def test_plain_layout_and_cpu_are_not_fused():
    assert not fused.fusible(torch.zeros(2, 32, 4, 4).contiguous(memory_format=torch.channels_last))
    assert not fused.fusible(torch.zeros(2, 32, 4, 4, device=DEVICE))


@pytest.fixture
def _exact_float32(monkeypatch):
    """No TF32 in float32 convolutions, which would hide errors of the stages between them; products have none."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def innermost(*shape, dtype=torch.float32):
    return torch.randn(*shape, device=DEVICE).to(dtype, memory_format=torch.channels_last).requires_grad_()


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("channels", "dtype", "capability"), [(128, torch.bfloat16, 90), (96, torch.float32, 80)])
def test_kernels_compile_for_gpus_of_two_generations(channels, dtype, capability, monkeypatch):
    from compiling import compiled, launches

    from gsqtok.acceleration import fused_triton

    x = torch.zeros(2, channels, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    one = torch.ones(channels)

    def all_stages():
        norm = fused_triton.GroupNorm.apply(x, one, one, 32, 1e-5, True, one, x.dtype)
        interleaved = fused_triton.Interleave.apply(fused_triton.Add.apply(x, norm, one), one, 0)
        interleaved.backward(torch.zeros_like(interleaved))

    found = launches(fused_triton, all_stages, monkeypatch)
    assert len(found) == 9
    for launch in found:
        assert compiled(*launch, capability).metadata.shared <= 99 << 10  # of a block on the smaller GPUs


def assert_close(found, expected, tolerance, scale=0.0):
    """By the norm of the difference, since single elements cancel."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    assert found.shape == expected.shape
    error = (found - expected).norm() / max(float(expected.norm()), float(scale), 1e-30)
    assert error <= tolerance, f"relative error {error:.2e}"


def plain(x, weight, bias, shift, groups, eps, silu):
    if shift is not None:
        x = x + shift[:, None, None]
    z = F.group_norm(x, groups, eps=eps)
    if weight.ndim == 1:
        z = z * weight[:, None, None] + bias[:, None, None]
    else:
        z = z * weight[:, :, None, None] + bias[:, :, None, None]
    return F.silu(z) if silu else z


TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}


SHAPES = [(2, 8, 8, 5, 3), (1, 64, 8, 1, 1), (2, 24, 4, 4, 4), (1, 32, 16, 16, 9), (1, 24, 2, 20, 21), (2, 96, 8, 3, 7)]


@runs_kernels
@pytest.mark.parametrize(
    ("kind", "dtype", "batch", "channels", "groups", "height", "width"),
    [
        *(("shifted", torch.float32, *shape) for shape in SHAPES),
        *(("plain", torch.float32, *shape) for shape in SHAPES[:2]),
        *(("silu", torch.float32, *shape) for shape in SHAPES[2:4]),
        *(("silu", torch.bfloat16, *shape) for shape in SHAPES[1:5]),
        *(("of each sample", torch.float32, *shape) for shape in SHAPES[:3]),
        ("of each sample", torch.float32, *SHAPES[5]),
    ],
)
def test_group_norm_and_all_its_gradients(batch, channels, groups, height, width, dtype, kind):
    x = innermost(batch, channels, height, width, dtype=dtype)
    shape = (batch, channels) if kind == "of each sample" else (channels,)
    weight, bias = (torch.randn(shape, device=DEVICE, requires_grad=True) for _ in range(2))
    shift = torch.randn(channels, device=DEVICE, requires_grad=True) if kind == "shifted" else None
    silu = kind != "plain"
    inputs = [t for t in (x, weight, bias, shift) if t is not None]
    truths = [t.detach().cpu().double().requires_grad_() for t in inputs]

    out = FUSED.normalise(x, Norm(weight, bias, groups, 1e-5, silu), shift, x.dtype)
    truth = plain(*truths[:3], truths[3] if shift is not None else None, groups, 1e-5, silu)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out, truth, TOLERANCE[dtype])

    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, inputs, grad)
    expected = torch.autograd.grad(truth, truths, grad.cpu().double())
    for name, f, e, t in zip(("x", "weight", "bias", "shift"), found, expected, inputs, strict=False):
        assert f.dtype == t.dtype, name
        # In groups of one channel a shift changes nothing: what cancels is as large as the gradient of x.
        scale = expected[0].abs().sum((0, 2, 3)).norm() / 10 if name == "shift" else 0
        assert_close(f, e, max(TOLERANCE[dtype], 1e-5), scale)


@runs_kernels
def test_mean_far_above_the_deviation():
    x = (100 + torch.randn(2, 64, 30, 30, device=DEVICE)).contiguous(memory_format=torch.channels_last)
    one, zero = torch.ones(64, device=DEVICE), torch.zeros(64, device=DEVICE)
    assert_close(FUSED.normalise(x, Norm(one, zero, 8, 1e-5), None, x.dtype), F.group_norm(x.double(), 8), 5e-5)


@runs_kernels
@pytest.mark.parametrize("programs", [2048, 4])  # several rounds of tiles a program
def test_many_tiles_are_merged_alike(monkeypatch, programs):
    from gsqtok.acceleration import fused_triton

    monkeypatch.setattr(fused_triton, "TILE", 128)
    monkeypatch.setattr(fused_triton, "SUMS_TILE", 64)  # several tiles a program, several programs a sample
    monkeypatch.setattr(fused_triton, "PROGRAMS", programs)
    x = innermost(2, 32, 5, 7)
    weight, bias = (torch.randn(32, device=DEVICE, requires_grad=True) for _ in range(2))
    shape = fused_triton.shape_of(x)
    assert shape.steps == (4 if programs == 2048 else 8)
    assert shape.splits > 1
    truths = [t.detach().cpu().double().requires_grad_() for t in (x, weight, bias)]
    out = FUSED.normalise(x, Norm(weight, bias, 4, 1e-5, True), None, x.dtype)
    truth = plain(*truths, None, 4, 1e-5, True)
    assert_close(out, truth, 2e-6)
    for f, e in zip(
        torch.autograd.grad(out.square().sum(), (x, weight, bias)),
        torch.autograd.grad(truth.square().sum(), truths),
        strict=True,
    ):
        assert_close(f, e, 1e-5)


@runs_kernels
def test_result_in_another_type():
    x = innermost(1, 32, 4, 4, dtype=torch.bfloat16)
    one, zero = torch.ones(32, device=DEVICE), torch.zeros(32, device=DEVICE)
    out = FUSED.normalise(x, Norm(one, zero, 32, 1e-5), None, torch.float32)
    assert out.dtype == torch.float32
    assert_close(out, F.group_norm(x.double(), 32), 2e-6)


@runs_kernels
@pytest.mark.parametrize(("batch", "channels", "size"), [(2, 32, (5, 3)), (1, 3, (1, 1)), (2, 192, (9, 16))])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)])
def test_add(batch, channels, size, dtypes):
    x, y = (innermost(batch, channels, *size, dtype=dtype) for dtype in dtypes)
    bias = torch.randn(channels, device=DEVICE, requires_grad=True)
    out = FUSED.add(x, y, bias)
    assert out.dtype == dtypes[0]
    assert_close(out, x.double() + y.double() + bias.double()[:, None, None], TOLERANCE[out.dtype])
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, (x, y, bias), grad)
    assert [f.dtype for f in found] == [*dtypes, torch.float32]
    for f, e in zip(found, (grad, grad, grad.double().sum((0, 2, 3))), strict=True):
        assert_close(f, e, TOLERANCE[torch.bfloat16])


@runs_kernels
@pytest.mark.parametrize("channels", [1, 3, 32])
@pytest.mark.parametrize("overlap", [0, 1])
def test_interleave(channels, overlap):
    h, w = 3, 5
    x = innermost(2, 4 * channels, h + overlap, w + overlap)
    bias = torch.randn(4 * channels, device=DEVICE, requires_grad=True)
    from gsqtok.acceleration.fused_triton import Interleave

    out = Interleave.apply(x, bias, overlap)
    assert out.is_contiguous(memory_format=torch.channels_last)
    truth = torch.empty(2, channels, 2 * h, 2 * w, dtype=torch.float64, device=DEVICE)
    for row in range(2):
        for column in range(2):
            part = (x.double() + bias.double()[:, None, None]).unflatten(1, (4, channels))[:, 2 * row + column]
            down, right = row * overlap, column * overlap
            truth[:, :, row::2, column::2] = part[:, :, down : down + h, right : right + w]
    assert_close(out, truth, 1e-6)
    inputs = (x, bias)
    grad = torch.randn_like(out)
    found, expected = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(truth, inputs, grad.double())
    for f, e in zip(found, expected, strict=True):
        assert_close(f, e, 1e-6)


@runs_kernels
def test_equal_inputs_give_equal_bits():
    x = innermost(2, 16, 30, 30, dtype=torch.bfloat16)
    weight, bias = (torch.randn(16, device=DEVICE, requires_grad=True) for _ in range(2))
    runs = []
    for _ in range(2):
        out = FUSED.normalise(x, Norm(weight, bias, 4, 1e-5, True), None, x.dtype)
        runs.append([out, *torch.autograd.grad(out.float().square().sum(), (x, weight, bias))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.fixture
def launched(monkeypatch):
    """The stages that ran, forward or backward."""
    from gsqtok.acceleration import fused_triton

    ran = []
    for stage in (fused_triton.GroupNorm, fused_triton.Add, fused_triton.Interleave):
        for name in ("forward", "backward"):
            run = getattr(stage, name)
            monkeypatch.setattr(stage, name, lambda *inputs, run=run: ran.append(run.__qualname__) or run(*inputs))
    return ran


@runs_kernels
@pytest.mark.slow
@pytest.mark.usefixtures("_exact_float32")
@pytest.mark.parametrize(("adaptive_norm", "depth_to_space"), [(False, False), (True, True)])
def test_networks_with_channels_innermost_equal_plain_ones(adaptive_norm, depth_to_space, monkeypatch, launched):
    """Every block with its fused stages against the same weights in float64 without, values and gradients."""
    from gsqtok.networks import Decoder, Encoder, blocks

    if INTERPRETED:  # where a program takes milliseconds, and each group has two
        monkeypatch.setattr(blocks, "NORM_GROUPS", 8)
    shape = (8, 32, (1, 2), (0, 0), 1)
    encoder, decoder = Encoder(*shape), Decoder(*shape, False, (), adaptive_norm, depth_to_space)
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *decoder.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    images = torch.randn(1, 3, 4, 6)
    results = []
    for dtype, device, layout in (
        (torch.float64, "cpu", torch.contiguous_format),
        (torch.float32, DEVICE, torch.channels_last),
    ):
        for network in (encoder, decoder):
            network.to(device, dtype, memory_format=layout).zero_grad()
            accelerate(network)  # float64 is left to PyTorch
        x = images.to(device, dtype, memory_format=layout).requires_grad_()
        latent = encoder(x)
        out = decoder(latent)
        out.square().mean().backward()
        stages = {f"{stage}.{way}" for stage in ("GroupNorm", "Add", "Interleave") for way in ("forward", "backward")}
        assert set(launched) == (stages if layout is torch.channels_last else set())
        parameters = {f"encoder.{n}": p for n, p in encoder.named_parameters()}
        parameters |= {f"decoder.{n}": p for n, p in decoder.named_parameters()}
        results.append({"latent": latent, "out": out, "x": x.grad} | {n: p.grad for n, p in parameters.items()})
        results[-1] = {name: value.detach().cpu().double() for name, value in results[-1].items()}
    plain_results, fused_results = results
    for name, value in fused_results.items():
        assert_close(value, plain_results[name], 1e-4, scale=plain_results["x"].norm() / 10)


@runs_kernels
@pytest.mark.usefixtures("_exact_float32")
def test_blocks_of_published_networks_run_the_kernels(monkeypatch, launched):
    from gsqtok.networks import blocks
    from gsqtok.published import taming_net

    monkeypatch.setattr(blocks, "NORM_GROUPS", 8)
    shape = {"channels": 32, "widths": (32, 64), "blocks": 0, "attention": (), "latent_channels": 8, "dim": 4}
    plain, x = taming_net.Decoder(**shape, kernel=1).double(), torch.randn(1, 4, 3, 2, device=DEVICE)
    network = copy.deepcopy(plain).to(DEVICE, torch.float32, memory_format=torch.channels_last)
    accelerate(network)
    results = []
    for module, given in ((network, x), (plain, x.cpu().double())):
        out = module(given)
        out.square().mean().backward()
        results.append({"out": out} | {name: p.grad for name, p in module.named_parameters()})
    count = sum(isinstance(module, blocks.GroupNorm) for module in network.modules())
    assert launched.count("GroupNorm.forward") == launched.count("GroupNorm.backward") == count
    assert "Interleave.backward" in launched
    found, expected = results
    for name, value in found.items():
        assert_close(value, expected[name], 1e-4, scale=expected["out"].detach().norm() / 100)


@runs_kernels
@pytest.mark.usefixtures("_exact_float32")
@pytest.mark.parametrize("out_channels", [32, 64])
def test_residual_block_adds_the_shift_first(out_channels, monkeypatch):
    from gsqtok.networks import blocks

    monkeypatch.setattr(blocks, "NORM_GROUPS", 8)
    block = blocks.ResidualBlock(32, out_channels).to(DEVICE, memory_format=torch.channels_last)
    inputs = [innermost(2, 32, 3, 4), torch.randn(32, device=DEVICE, requires_grad=True)]
    out, shift = FUSED._residual(block, *inputs, inputs[0])
    assert shift is None
    found = [out, *torch.autograd.grad(out.square().mean(), [*inputs, *block.parameters()])]
    block.to("cpu", torch.float64)
    inputs = [x.detach().to("cpu", torch.float64).requires_grad_() for x in inputs]
    out = block(inputs[0] + inputs[1][:, None, None])
    expected = [out, *torch.autograd.grad(out.square().mean(), [*inputs, *block.parameters()])]
    for f, e in zip(found, expected, strict=True):
        assert_close(f, e, 1e-4, scale=expected[1].norm() / 10)


@runs_kernels
@pytest.mark.usefixtures("_exact_float32")
@pytest.mark.parametrize("layouts", ["images", "weights", "both", "none"])
def test_bias_is_left_for_later_where_channels_come_out_innermost(layouts):
    def in_layout(tensor, innermost):
        return tensor.to(memory_format=torch.channels_last if innermost else torch.contiguous_format)

    conv = in_layout(torch.nn.Conv2d(3, 16, 3, padding=1).to(DEVICE), layouts in ("weights", "both"))
    images = in_layout(torch.randn(2, 3, 6, 5, device=DEVICE), layouts in ("images", "both"))
    out, shift = FUSED.enter(conv, images)
    if layouts == "none":
        assert shift is None
    else:
        assert shift is conv.bias
        assert fused.fusible(out)
        out = out + shift[:, None, None]
    assert_close(out, conv(images), 1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
def test_compiled_network_is_one_graph_with_equal_gradients():
    from gsqtok.networks import Decoder

    shape = (8, 32, (1, 2), (1, 0), 1, False, (), True, True)
    decoder = Decoder(*shape).cuda().to(memory_format=torch.channels_last)
    accelerate(decoder)
    latent = innermost(2, 8, 6, 5)
    compiled = torch.compile(decoder, fullgraph=True)
    results = []
    for network in (decoder, compiled):
        decoder.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            out = network(latent)
        out.float().square().mean().backward()
        results.append([out.detach(), *(p.grad.clone() for p in decoder.parameters())])
    # a bias before a norm has a gradient of zero: what rounding leaves there is measured by the others
    largest = max(float(x.double().norm()) for x in results[0][1:])
    for found, expected in zip(*reversed(results), strict=True):
        assert_close(found, expected, 3e-2, scale=1e-2 * largest)
