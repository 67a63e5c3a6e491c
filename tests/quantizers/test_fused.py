"""The fused kernels beside what PyTorch computes: on the GPU where there is one, elsewhere in Triton's interpreter, in
a process apart since the interpreter has to be chosen before Triton is imported."""

import os
import subprocess
import sys

import pytest
import torch

from gsqtok.quantizers import build_quantizer, fused

triton = pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs_kernels = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="kernels need a GPU or the interpreter")
METHODS = [
    ("gsq", {"dim": 8}),
    ("gsq", {"dim": 9, "groups": 3, "orthogonal_weight": 0.1}),
    ("gsq", {"dim": 10, "groups": 2, "codebooks": "separate"}),
    ("gsq", {"dim": 4, "groups": 2, "norm": "none"}),
    ("vq", {"dim": 6, "groups": 2}),
    ("simvq", {"dim": 5}),
    ("ema_vq", {"dim": 6}),
    ("ema_vq", {"dim": 6, "groups": 2, "metric": "cosine"}),
]


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the kernels run in this process")
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout


def step(quantizer, latent, weigh):
    """Everything that a training step sees: values, indices, losses, gradients."""
    latent = latent.clone().requires_grad_()
    quantizer.zero_grad()
    out = quantizer(latent)
    weigh(out).backward()
    gradients = {name: p.grad for name, p in quantizer.named_parameters()}
    return [out.quantized, out.indices, out.loss, out.losses, latent.grad, gradients]


def plainly(call, monkeypatch):
    """The call with PyTorch's operations alone."""
    with monkeypatch.context() as patch:
        patch.setattr(fused, "_kernels_run_on", lambda device: False)
        return call()


WEIGHTS = torch.randn(2, 37, 10, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def weigh_values(out):
    return (out.quantized * WEIGHTS[..., : out.quantized.shape[-1]]).sum()


@runs_kernels
@pytest.mark.parametrize(("name", "options"), METHODS)
@pytest.mark.parametrize(
    "weigh",
    [
        lambda out: weigh_values(out) + out.loss,
        lambda out: out.quantized.sum() + 3 * out.losses["commitment"],
        lambda out: out.loss * 2,
    ],
)
def test_fused_is_what_pytorch_computes(name, options, weigh, monkeypatch):
    torch.manual_seed(0)
    quantizer = build_quantizer(name, codebook_size=50, **options).to(DEVICE)
    latent = torch.randn(2, 37, options["dim"], device=DEVICE)
    latent[0, 3] = 0
    seen = []
    apply = fused._LookUp.apply
    monkeypatch.setattr(fused._LookUp, "apply", lambda *given: seen.append(given) or apply(*given))
    found = step(quantizer, latent, weigh)
    assert len(seen) == 1
    torch.testing.assert_close(found, plainly(lambda: step(quantizer, latent, weigh), monkeypatch))
    assert len(seen) == 1
    assert torch.equal(quantizer.decode(found[1]), found[0])


@runs_kernels
@pytest.mark.parametrize(("name", "options"), METHODS[1:3])
def test_a_position_with_a_group_that_has_no_codeword(name, options, monkeypatch):
    """As the kernels find it; on a CPU, where the search raises for it, said in its place."""
    torch.manual_seed(0)
    groups = options["groups"]
    quantizer = build_quantizer(name, codebook_size=50, **options).to(DEVICE)
    latent = torch.randn(2, 37, options["dim"], device=DEVICE)
    latent[1, 5, -1] = torch.nan
    if DEVICE == "cpu":
        search = fused.nearest

        def nearest(rows, book, metric):
            found = search(rows.nan_to_num(), book, metric=metric)
            return torch.where(rows.isfinite().all(-1), found, -1)

        monkeypatch.setattr(fused, "nearest", nearest)
    found = step(quantizer, latent, lambda out: weigh_values(out).nansum() + out.loss)
    plain = plainly(lambda: step(quantizer, latent, lambda out: weigh_values(out).nansum() + out.loss), monkeypatch)
    assert (found[1][1, 5] == -1).all()
    assert found[0][1, 5].isnan().all()
    assert found[2].isnan()
    assert torch.equal(found[1], plain[1])
    torch.testing.assert_close(found[0], plain[0], equal_nan=True)
    assert (found[4][1, 5] == 0).all()
    assert found[0].isnan().sum() == options["dim"]
    assert (found[1] == -1).sum() == groups
    with pytest.raises(ValueError, match="1 of 74 latent vectors"):
        quantizer.eval()(latent)


@runs_kernels
def test_channels_first_autocast_and_no_gradient(monkeypatch):
    torch.manual_seed(0)
    quantizer = build_quantizer("gsq", dim=8, groups=2, codebook_size=50).to(DEVICE)
    latent = torch.randn(3, 8, 4, 5, device=DEVICE)

    def call():
        with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.bfloat16):
            return quantizer(latent.bfloat16(), channel_first=True)

    found, plain = call(), plainly(call, monkeypatch)
    assert torch.equal(found.quantized, plain.quantized)
    assert torch.equal(found.indices, plain.indices)
    torch.testing.assert_close(found.loss, plain.loss)
