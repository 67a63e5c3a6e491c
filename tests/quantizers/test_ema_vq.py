"""EMA-VQ against Razavi 2019, equation 2, in float64, and vector-quantize-pytorch where they agree."""

import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

from gsqtok.quantizers import EMAVQ


def step(quantizer, x):
    out = quantizer(x)
    quantizer.update(x, out.indices)
    return out


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_moving_averages_of_the_paper():
    quantizer = EMAVQ(3, codebook_size=8, decay=0.9, revive_after=0).train()
    codebook = quantizer.codebook.double()
    counts, sums = torch.ones(8).double(), codebook.clone()
    for seed in range(5):
        x = random(20, 3, seed=seed)
        out = step(quantizer, x)
        index = torch.cdist(x.double(), codebook).argmin(-1)
        assert torch.equal(out.indices[:, 0], index)
        chosen = torch.nn.functional.one_hot(index, 8).double()
        counts = 0.9 * counts + 0.1 * chosen.sum(0)
        sums = 0.9 * sums + 0.1 * chosen.T @ x.double()
        used = chosen.sum(0) > 0
        codebook = torch.where(used[:, None], sums / counts[:, None], codebook)
        torch.testing.assert_close(quantizer.codebook.double(), codebook, rtol=1e-5, atol=1e-6)


def test_unused_codewords_stay_where_they_were():
    torch.manual_seed(0)
    quantizer = EMAVQ(2, codebook_size=16, decay=0.9, revive_after=0).train()
    start, ever_used = quantizer.codebook.clone(), set()
    for seed in range(200):  # long enough for a count to decay to 1e-9, where smoothing would dominate it
        out = step(quantizer, torch.tensor([[50.0, 50.0]]) + random(4, 2, seed=seed))
        ever_used.update(out.indices.flatten().tolist())
    used = torch.tensor(sorted(ever_used))
    unused = torch.ones(16, dtype=torch.bool).index_fill(0, used, False)
    assert unused.sum() >= 14
    assert torch.equal(quantizer.codebook[unused], start[unused])
    torch.testing.assert_close(quantizer.codebook[used], torch.full((len(used), 2), 50.0), atol=1.0, rtol=0)


def test_dead_codewords_are_revived_at_latents():
    torch.manual_seed(0)
    quantizer = EMAVQ(2, codebook_size=32, revive_after=5).train()
    for seed in range(60):
        step(quantizer, torch.tensor([100.0, -100.0]) + random(256, 2, seed=seed))
    near = torch.cdist(quantizer.codebook, torch.tensor([[100.0, -100.0]]))
    assert (near < 5).all(), "all 32 have moved to where the latents are"
    used = quantizer.eval()(torch.tensor([100.0, -100.0]) + random(4096, 2)).indices.unique()
    assert len(used) >= 30


def test_a_step_without_a_finite_latent_changes_nothing():
    quantizer = EMAVQ(2, codebook_size=8, revive_after=1).train()
    step(quantizer, random(4, 2))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    step(quantizer, torch.full((4, 2), torch.nan))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_same_step_as_vector_quantize_pytorch():
    """Its counts and sums start alike from one batch on; without its Laplace smoothing the codewords agree.

    They differ for unused codewords: smoothing divides their sum by a larger count, which pulls them to the origin.
    """
    peer = VectorQuantize(dim=4, codebook_size=8, decay=0.8, eps=1e-12, rotation_trick=False).train()
    quantizer = EMAVQ(4, codebook_size=8, decay=0.8, revive_after=0).train()
    inner = peer._codebook
    codebook = random(8, 4)
    inner.embed.data.copy_(codebook[None])
    inner.embed_avg.data.copy_(codebook[None])
    inner.cluster_size.data.fill_(1.0)
    for name in ("codebook", "sums"):
        getattr(quantizer, name).copy_(codebook)
    x = random(1, 400, 4, seed=1)
    value, index, loss = peer(x)
    out = step(quantizer, x)
    assert torch.equal(out.indices[..., 0], index)
    torch.testing.assert_close(out.quantized, value)
    torch.testing.assert_close(out.losses["commitment"], loss.squeeze())
    torch.testing.assert_close(quantizer.codebook, inner.embed[0], rtol=1e-4, atol=1e-5)


def test_no_gradient_moves_the_codebook():
    quantizer = EMAVQ(4, groups=2, codebook_size=8)
    assert not list(quantizer.parameters())
    x = random(10, 4).requires_grad_()
    out = quantizer(x)
    out.loss.backward()
    expected = 0.25 * 2 * (x.detach() - out.quantized.detach()) / 40
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"revive_after": -1}, {"codebook_size": 1}])
def test_bad_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        EMAVQ(4, **options)
