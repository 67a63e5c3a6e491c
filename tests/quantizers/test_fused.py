"""The fused kernels beside what PyTorch computes: on the GPU where there is one, elsewhere in Triton's interpreter,
by `acceleration/test_fused.py`."""

import pytest
import torch
from interpreter import DEVICE, INTERPRETED, runs_kernels
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from gsqtok.quantizers import GSQ, build_quantizer, fused

triton = pytest.importorskip("triton")
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
        patch.setattr(fused, "kernels_run_on", lambda device: False)
        return call()


def counted(monkeypatch):
    """What the kernels are called with from now on."""
    seen = []
    run = fused._run
    monkeypatch.setattr(fused, "_run", lambda *given: seen.append(given) or run(*given))
    return seen


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
    seen = counted(monkeypatch)
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


def gsq(**options):
    torch.manual_seed(0)
    return build_quantizer("gsq", **{"dim": 8, "groups": 2, "codebook_size": 50} | options).to(DEVICE)


@runs_kernels
def test_losses_and_gradients_are_those_of_float64():
    quantizer = gsq()
    latent = torch.randn(300, 8, device=DEVICE)
    found = step(quantizer, latent, lambda out: (out.quantized * WEIGHTS[0, 0, :8]).sum() + 100 * out.loss)
    exact, book = latent.double().requires_grad_(), quantizer.codebook.detach().double().requires_grad_()
    unit = F.normalize(exact.view(-1, 2, 4), dim=-1)
    taken = book[found[1]]
    losses = F.mse_loss(taken, unit.detach()) + 0.25 * F.mse_loss(unit, taken.detach())
    ((unit.flatten(1) * WEIGHTS[0, 0, :8]).sum() + 100 * losses).backward()
    assert torch.equal(found[1], (unit @ F.normalize(book, dim=-1).T).argmax(-1))
    torch.testing.assert_close(found[2], losses.float())
    torch.testing.assert_close(found[4], exact.grad.float())
    torch.testing.assert_close(found[5]["codebook"], book.grad.float())


@runs_kernels
@pytest.mark.parametrize("groups", [1, 4])
def test_near_ties_are_decided_alike(groups, monkeypatch):
    """Between two neighbours, where rounding a latent to unit length would decide."""
    quantizer = gsq(dim=2 * groups, groups=groups, codebook_size=3000)
    order = quantizer.codebook.detach()[torch.atan2(*quantizer.codebook.detach().T).argsort()]
    rows = torch.cat([order[:-1] + order[1:] + 3e-8 * step for step in range(-2, 3)])[: 4 * 3000] * 0.37
    latent = rows.view(-1, 2 * groups)
    found, plain = quantizer(latent), plainly(lambda: quantizer(latent), monkeypatch)
    assert torch.equal(found.indices, plain.indices)


@runs_kernels
@pytest.mark.parametrize("of_latent", [True, False])
@pytest.mark.parametrize("of_book", [True, False])
@pytest.mark.parametrize("norm", ["l2", "none"])
def test_what_has_a_gradient(of_latent, of_book, norm, monkeypatch):
    quantizer = gsq(norm=norm)
    quantizer.codebook.requires_grad_(of_book)
    latent = torch.randn(37, 8, device=DEVICE, requires_grad=of_latent)

    def call():
        out = quantizer(latent)
        wanted = [x for x, with_gradient in ((latent, of_latent), (quantizer.codebook, of_book)) if with_gradient]
        gradients = torch.autograd.grad(weigh(out), wanted) if wanted else ()
        return [x.requires_grad for x in (out.quantized, out.indices, out.loss, *out.losses.values())], gradients

    def weigh(out):
        return (out.quantized * WEIGHTS[0, :, :8]).sum() + out.loss

    torch.testing.assert_close(call(), plainly(call, monkeypatch))


@runs_kernels
@pytest.mark.parametrize(("name", "options"), [METHODS[1], METHODS[4], METHODS[6]])
def test_outputs_and_codebooks_may_change_before_the_backward_pass(name, options, monkeypatch):
    def call():
        torch.manual_seed(0)
        quantizer = build_quantizer(name, codebook_size=50, **options).to(DEVICE).train()
        latent = torch.randn(2, 37, options["dim"], device=DEVICE).requires_grad_()
        out = quantizer(latent)
        weighed = out.loss + out.quantized.mul_(3).add_(1).square().sum()
        quantizer.update(latent, out.indices)
        out.indices.zero_()
        first = torch.autograd.grad(weighed, latent, retain_graph=True)
        if name != "ema_vq":
            return first, torch.autograd.grad(weighed, (latent, quantizer.codebook))
        return first, torch.autograd.grad(weighed, latent)

    torch.testing.assert_close(call(), plainly(call, monkeypatch))


@runs_kernels
def test_a_second_derivative_is_refused():
    quantizer = gsq()
    latent = torch.randn(37, 8, device=DEVICE, requires_grad=True)
    (gradient,) = torch.autograd.grad(quantizer(latent).loss, latent, create_graph=True)
    assert gradient.requires_grad
    with pytest.raises(NotImplementedError, match=r"torch\.func\.grad takes it"):
        torch.autograd.grad(gradient.square().sum(), latent)
    torch.func.grad(lambda rows: torch.func.grad(lambda rows: quantizer(rows).loss)(rows).square().sum())(latent)


@runs_kernels
def test_no_latents_masks_and_odd_strides(monkeypatch):
    quantizer = gsq().train()
    latent = torch.randn(5, 16, 7, device=DEVICE)[:, ::2].transpose(1, 2)
    mask = torch.rand(5, 7, device=DEVICE) > 0.5
    seen = counted(monkeypatch)
    for rows, options in ((latent, {}), (latent, {"mask": mask}), (latent[:0], {}), (latent, {"mask": mask & False})):
        found = quantizer(rows, **options)
        plain = plainly(lambda: quantizer(rows, **options), monkeypatch)  # noqa: B023
        for one, other in zip(vars(found).values(), vars(plain).values(), strict=True):
            torch.testing.assert_close(one, other)
    assert [len(given[0]) for given in seen] == [35, mask.sum()]


@runs_kernels
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_who_watches_sees_operations(monkeypatch):
    """`torch.func`, tracers, compilers."""
    quantizer = gsq().train()
    latent = torch.randn(6, 5, 8, device=DEVICE)
    seen = counted(monkeypatch)

    def quantized(rows):
        return quantizer(rows).quantized

    def loss(rows):
        return quantizer(rows).loss

    plain = plainly(lambda: quantizer(latent), monkeypatch)
    torch.testing.assert_close(torch.vmap(quantized)(latent), plain.quantized)
    gradient = torch.func.grad(loss)(latent)
    watched = latent.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(plainly(lambda: loss(watched), monkeypatch), watched)[0])
    other = plainly(lambda: quantized(2 * latent), monkeypatch)
    torch.testing.assert_close(make_fx(quantized)(latent)(2 * latent), other)
    torch.testing.assert_close(torch.compile(quantized, backend="eager")(latent), plain.quantized)
    assert seen == []


@runs_kernels
def test_a_subclass_is_called_as_it_says(monkeypatch):
    class First(GSQ):
        def assign(self, latent, book):
            return latent.new_zeros(latent.shape[:-1], dtype=torch.int64)

    quantizer = First(dim=8, groups=2, codebook_size=50).to(DEVICE)
    assert (quantizer(torch.randn(3, 8, device=DEVICE)).indices == 0).all()


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("groups", "separate", "unit"), [(1, False, True), (3, True, False)])
def test_kernels_compile_for_gpus_of_two_generations(groups, separate, unit, capability, monkeypatch):
    from compiling import compiled, launches

    from gsqtok.quantizers import fused_triton

    rows, found, one = torch.zeros(37, groups * 8), torch.zeros(37, groups, dtype=torch.int64), torch.zeros(())
    shape = (37, groups, 8, 50, separate, unit, 1.0, 0.25)

    def both_ways():
        fused_triton.forward(*shape, True)(rows, rows, found, rows, rows, found, one, one, one)
        fused_triton.backward(*shape, rows.stride(), (True,) * 4, True)(
            rows, rows, found, rows, one, one, one, rows, rows, found
        )

    for cached in (fused_triton.forward, fused_triton.backward):
        cached.cache_clear()
    seen = launches(fused_triton, both_ways, monkeypatch)
    for cached in (fused_triton.forward, fused_triton.backward):
        cached.cache_clear()
    assert [launch[0].__name__ for launch in seen] == ["_take", "_mean", "_spread"]
    for launch in seen:
        assert compiled(*launch, capability).metadata.shared <= 99 << 10
