"""The options of GSQ that only studies use, against float64 formulas."""

import math

import pytest
import torch
from torch.nn import functional as F

from gsqtok.studies.gsq_study import StudyGSQ, coding_rate_gap


def with_codebook(codebook, dim, groups, **options):
    quantizer = StudyGSQ(dim, groups=groups, codebook_size=len(codebook), **options)
    with torch.no_grad():
        quantizer.codebook.copy_(codebook)
    return quantizer


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_entropy_loss_is_that_of_the_softmax_over_minus_distance():
    quantizer = with_codebook(random(20, 4), 8, 2, entropy_weight=0.3, temperature=0.5).train()
    latent = random(30, 8, seed=1).requires_grad_()
    out = quantizer(latent)
    out.loss.backward()

    z = latent.detach().double().requires_grad_()
    codebook = quantizer.codebook.detach().double().requires_grad_()
    zn, cn = (x / x.norm(dim=-1, keepdim=True) for x in (z.view(-1, 4), codebook))
    p = (-torch.cdist(zn, cn).square() / 0.5).softmax(-1)
    sample, batch = torch.special.entr(p).sum(-1).mean(), torch.special.entr(p.mean(0)).sum()
    index = torch.cdist(zn, cn).argmin(-1)
    vq = (codebook[index] - zn.detach()).square().mean() + 0.25 * (codebook[index].detach() - zn).square().mean()
    loss = vq + 0.3 * (sample - batch)
    loss.backward()

    torch.testing.assert_close(out.losses["sample_entropy"].double(), sample)
    torch.testing.assert_close(out.losses["batch_entropy"].double(), batch)
    torch.testing.assert_close(out.loss.double(), loss)
    torch.testing.assert_close(latent.grad.double(), z.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(quantizer.codebook.grad.double(), codebook.grad, rtol=1e-4, atol=1e-6)
    assert 0 <= sample <= batch <= math.log(20)


def test_entropy_loss_spreads_the_assignment():
    """The right sign: a step down the loss of a collapsed codebook makes its use more even."""
    codebook = torch.cat([torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 1.0]) + 0.1 * random(7, 2)])
    quantizer = with_codebook(codebook, 2, 1, entropy_weight=1.0, temperature=0.5, commitment_weight=0.0).train()
    latent = F.normalize(torch.tensor([1.0, -0.3]) + 0.3 * random(256, 2, seed=1), dim=-1)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.05)
    entropies = []
    for _ in range(50):
        out = quantizer(latent)
        entropies.append(out.losses["batch_entropy"].item())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert entropies[0] < 0.7
    assert entropies[-1] > entropies[0] + 0.05


def test_coding_rate_gap():
    corners = torch.cat([torch.eye(3), -torch.eye(3)])
    assert coding_rate_gap(5 * corners) == pytest.approx(0, abs=1e-6)  # no direction preferred, whatever the lengths
    collapsed = torch.tensor([[1.0, 0.0, 0.0]]).repeat(6, 1)
    expected = 1.5 * math.log(5) - 0.5 * math.log(1 + 3 * 4)  # 1 / e^2 = 4; all energy, times d = 3, in one direction
    assert coding_rate_gap(collapsed) == pytest.approx(expected, rel=1e-5)


def test_sampling_follows_the_softmax():
    codebook = F.normalize(random(5, 3), dim=-1)
    quantizer = with_codebook(codebook, 3, 1, sample=True, temperature=0.7).train()
    latent = F.normalize(random(1, 3, seed=1), dim=-1)
    torch.manual_seed(0)
    out = quantizer(latent.repeat(40_000, 1))
    share = out.indices.flatten().bincount(minlength=5) / 40_000
    expected = (-torch.cdist(latent, codebook).square() / 0.7).softmax(-1)[0]
    torch.testing.assert_close(share, expected, atol=0.01, rtol=0)
    assert torch.equal(quantizer.eval()(latent).indices, torch.cdist(latent, codebook).argmin(-1, keepdim=True))
