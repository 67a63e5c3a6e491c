"""Methods of other papers, against their authors' packages, vector-quantize-pytorch or the formula written out."""

import itertools

import pytest
import torch
from diveq import DIVEQ
from torch.nn import functional as F
from vector_quantize_pytorch import ResidualFSQ, ResidualLFQ, SimVQ

from gsqtok.quantizers import build_quantizer
from gsqtok.quantizers.codebook import orthogonality
from gsqtok.quantizers.ibq import soft_codewords
from gsqtok.search import nearest

N, D, V = 200, 5, 40


def latents(seed: int = 0) -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_simvq(gradient):
    ours = build_quantizer("simvq", dim=D, codebook_size=V, gradient=gradient)
    theirs = SimVQ(D, V, rotation_trick=gradient == "rotation")
    theirs.frozen_codebook.copy_(ours.frozen_codewords)
    theirs.code_transform.load_state_dict(ours.projection.state_dict())
    x, y = latents(), latents()
    out, (quantized, indices, loss) = ours(x), theirs(y[None])
    assert torch.equal(out.indices[:, 0], indices[0])
    torch.testing.assert_close(out.quantized, quantized[0])
    torch.testing.assert_close(out.loss, loss)
    target = latents(1).detach()
    for value, total in ((out.quantized, out.loss), (quantized[0], loss)):
        (total + (value - target).square().mean()).backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.projection.weight.grad, theirs.code_transform.weight.grad)
    assert "frozen_codewords" not in dict(ours.named_parameters())


def test_diveq():
    ours = build_quantizer("diveq", dim=D, codebook_size=V, noise=0.01)
    theirs = DIVEQ(V, D, noise_var=0.01, allow_warning=False, codebook_reset=False)  # which is a standard deviation
    with torch.no_grad():
        ours.codebook.normal_()
        theirs.codebook.copy_(ours.codebook)
    x, y = latents(), latents()
    torch.manual_seed(3)
    out = ours(x)
    torch.manual_seed(3)
    quantized, indices, _ = theirs(y)
    assert torch.equal(out.indices[:, 0], indices)
    torch.testing.assert_close(out.quantized, quantized)
    target = latents(1).detach()
    for value in (out.quantized, quantized):
        (value - target).square().mean().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.codebook.grad, theirs.codebook.grad)
    hard, indices, _ = theirs.inference(x.detach())
    assert torch.equal(ours.eval()(x).quantized.detach(), hard)


def test_residual_fsq():
    levels, stages = [4, 3, 5, 8, 2], 3
    ours = build_quantizer("rfsq", dim=D, stages=stages, levels=levels)
    theirs = ResidualFSQ(levels=levels, num_quantizers=stages)
    x, y = (3 * latents(seed).detach() for seed in (0, 0))
    x.requires_grad_(), y.requires_grad_()
    out, (quantized, indices) = ours(x), theirs(y[None])
    assert torch.equal(out.indices, indices[0].long())
    torch.testing.assert_close(out.quantized, quantized[0])
    assert (out.quantized - torch.tanh(x / 1.25) * 1.25).abs().max() < 1  # coarse channels are, fine ones are not


def test_residual_lfq():
    stages = 3
    ours = build_quantizer("rlfq", dim=D, stages=stages, entropy_weight=0.0, commitment_weight=0.0)
    theirs = ResidualLFQ(dim=D, num_quantizers=stages, codebook_size=2**D, entropy_loss_weight=0.0)
    out, (quantized, indices, _) = ours(latents()), theirs(latents()[None])
    torch.testing.assert_close(out.quantized, quantized[0])
    reversed_bits = sum(((out.indices >> bit) & 1) << (D - 1 - bit) for bit in range(D))  # they count channel 0 highest
    assert torch.equal(reversed_bits, indices[0].long())


@pytest.mark.parametrize("chunk", [1, 7, V, 1000])
def test_soft_codewords_and_their_gradient(chunk):
    z, c = (torch.randn(n, D, dtype=torch.float64).requires_grad_() for n in (30, V))
    found, expected = soft_codewords(z, c, chunk), (z @ c.T).softmax(1) @ c.detach()
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    gradients = (torch.autograd.grad((value * weights).sum(), (z, c)) for value in (found, expected))
    torch.testing.assert_close(*gradients)


def test_ibq():
    """Against the paper's own form with its N x V matrices (one-hot indices through a straight-through softmax)."""
    ours = build_quantizer("ibq", dim=D, codebook_size=V)
    with torch.no_grad():
        ours.codebook.normal_()
    x, y = latents(), latents()
    codebook = ours.codebook.detach().clone().requires_grad_()
    logits = y @ codebook.T
    soft = logits.softmax(1)
    hard = F.one_hot(logits.argmax(1), V).float()
    one_hot = hard - soft.detach() + soft
    through, quantized = one_hot @ codebook, hard @ codebook
    loss = F.mse_loss(through, y) + F.mse_loss(quantized.detach(), y) + 0.25 * F.mse_loss(quantized, y.detach())
    out = ours(x)
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(out.quantized, quantized)
    target = latents(1).detach()
    (out.loss + (out.quantized - target).square().mean()).backward()
    (loss + (through - target).square().mean()).backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.codebook.grad, codebook.grad)


def test_ibq_names_its_memory():
    quantizer = build_quantizer("ibq", dim=8, codebook_size=2**18, chunk_mib=64)
    n = 2**15
    assert quantizer._chunk(n) * n * 4 <= 64 * 2**20
    assert quantizer.working_memory(n) < 4 * n * 2**18 / 100  # of the N x V matrix


def test_ibq_takes_no_more_than_it_names():
    quantizer, latents = build_quantizer("ibq", dim=8, codebook_size=2**13, chunk_mib=4), 2**12
    x = torch.randn(latents, 8, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        soft_codewords(x, quantizer.codebook, quantizer._chunk(latents)).sum().backward()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    taken = list(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    assert 8 * 2**20 < max(taken) <= quantizer.working_memory(latents)


def test_fvq_is_saved_as_a_plain_codebook():
    torch.manual_seed(0)
    quantizer = build_quantizer("fvq", dim=D, codebook_size=V, patch=8, width=16, nested=None)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain = quantizer.plain()
    assert plain.name == "vq"
    assert [name for name, _ in plain.named_parameters()] == ["codebook"]
    x = latents()
    assert torch.equal(plain.eval()(x).indices, quantizer.eval()(x).indices)
    assert torch.equal(plain(x).quantized, quantizer(x).quantized)
    assert not torch.equal(plain.codebook, quantizer.codebook)


def test_every_codeword_of_fvq_gets_a_gradient_from_one_latent():
    torch.manual_seed(0)
    quantizer = build_quantizer("fvq", dim=D, codebook_size=V, patch=8, width=16)
    quantizer(latents()[:1]).loss.backward()
    assert (quantizer.codebook.grad.abs().sum(1) > 0).all()


def test_orthogonality():
    codebook = torch.randn(V, D)
    unit = F.normalize(codebook, dim=1)
    expected = (unit @ unit.T).square().sum() / V**2 - 1 / V
    torch.testing.assert_close(orthogonality(codebook), expected)
    several = torch.stack([codebook, torch.eye(D).repeat(V // D, 1)])
    torch.testing.assert_close(orthogonality(several), (expected + 1 / D - 1 / V) / 2)
    assert orthogonality(torch.eye(D)).abs() < 1e-6


def test_separate_codebooks_are_as_many_quantizers():
    torch.manual_seed(0)
    whole = build_quantizer("gsq", dim=12, groups=3, codebook_size=V, codebooks="separate")
    x = torch.randn(50, 12, requires_grad=True)
    out = whole(x)
    parts = []
    for group in range(3):
        alone = build_quantizer("gsq", dim=4, codebook_size=V)
        with torch.no_grad():
            alone.codebook.copy_(whole.codebook[group])
        parts.append(alone(x[:, 4 * group : 4 * group + 4]))
    assert torch.equal(out.indices, torch.cat([part.indices for part in parts], 1))
    assert torch.equal(out.quantized, torch.cat([part.quantized for part in parts], 1))
    torch.testing.assert_close(out.loss, sum(part.loss for part in parts) / 3)


@pytest.mark.parametrize("codebooks", ["shared", "separate"])
def test_gsq_starts_by_kmeans(codebooks):
    """Latents in 8 clusters a group: the codewords become their directions."""
    torch.manual_seed(0)
    quantizer = build_quantizer("gsq", dim=8, groups=2, codebook_size=8, codebooks=codebooks, init="kmeans").train()
    centres = F.normalize(torch.randn(2, 8, 4), dim=-1)
    if codebooks == "shared":
        centres[1] = centres[0]
    choice = torch.randint(8, (400, 2))
    x = torch.stack([centres[g, choice[:, g]] for g in range(2)], 1).mul(3).flatten(1)
    quantizer.update(x, quantizer(x).indices)
    book = quantizer.codebook if codebooks == "separate" else quantizer.codebook.expand(2, -1, -1)
    for g in range(2):
        found = nearest(centres[g], book[g])
        error = (book[g][found] - centres[g]).norm(dim=1)
        assert (error < 1e-5).sum() >= 5  # Lloyd's algorithm may leave a centre between two clusters
    assert not quantizer.follows
