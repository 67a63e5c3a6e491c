"""RVQ and RSQ against the recursion written out, and vector-quantize-pytorch's ResidualVQ."""

import pytest
import torch
from torch.nn import functional as F
from vector_quantize_pytorch import ResidualVQ

from gsqtok.quantizers import GSQ, RSQ, RVQ


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_codebooks(quantizer, codebooks):
    with torch.no_grad():
        for stage, codebook in zip(quantizer.quantizers, codebooks, strict=True):
            stage.codebook.copy_(codebook)
    return quantizer


def test_two_stages_by_hand():
    quantizer = with_codebooks(
        RVQ(1, stages=2, codebook_size=2), [torch.tensor([[0.0], [10.0]]), torch.tensor([[-1.0], [2.0]])]
    )
    out = quantizer(torch.tensor([[8.5], [2.5]]))
    assert out.indices.tolist() == [[1, 0], [0, 1]]
    assert out.quantized.tolist() == [[9.0], [2.0]]
    assert out.losses["codebook"].item() == pytest.approx((1.5**2 + 2.5**2) / 2 + (0.5**2 + 0.5**2) / 2)


def test_each_stage_trains_on_its_residual():
    codebooks = [random(16, 3, seed=s) / 2**s for s in range(3)]
    quantizer = with_codebooks(RVQ(6, groups=2, stages=3, codebook_size=16), codebooks).train()
    latent = random(40, 6, seed=9).requires_grad_()
    out = quantizer(latent)
    out.loss.backward()

    z = latent.detach().double().requires_grad_()
    books = [book.double().requires_grad_() for book in codebooks]
    residual, loss, total = z.view(40, 2, 3), 0, 0
    for stage, book in enumerate(books):
        index = torch.cdist(residual, book).argmin(-1)
        q = book[index]
        loss = loss + (q - residual.detach()).square().mean() + 0.25 * (q.detach() - residual).square().mean()
        residual, total = residual - q.detach(), total + q.detach()
        assert torch.equal(out.indices.view(40, 2, 3)[..., stage], index), "tokens run by group, then by stage"
    loss.backward()
    torch.testing.assert_close(out.quantized.double(), total.flatten(-2))
    torch.testing.assert_close(out.loss.double(), loss)
    torch.testing.assert_close(latent.grad.double(), z.grad, rtol=1e-4, atol=1e-6)
    for stage, book in zip(quantizer.quantizers, books, strict=True):
        torch.testing.assert_close(stage.codebook.grad.double(), book.grad, rtol=1e-4, atol=1e-6)


def test_same_codes_as_vector_quantize_pytorch():
    peer = ResidualVQ(dim=8, num_quantizers=3, codebook_size=32, rotation_trick=False).eval()
    quantizer = with_codebooks(RVQ(8, stages=3, codebook_size=32), peer.codebooks.detach()).eval()
    latent = random(1, 200, 8)
    value, index, _ = peer(latent)
    out = quantizer(latent)
    assert torch.equal(out.indices, index)
    torch.testing.assert_close(out.quantized, value)


@pytest.mark.parametrize("kind", [RVQ, RSQ])
def test_decode_first_refines_with_every_stage(kind):
    torch.manual_seed(0)
    quantizer = kind(4, stages=4, codebook_size=64).eval()
    latent = F.normalize(random(500, 4), dim=-1)
    if kind is RVQ:
        with_codebooks(quantizer, [random(64, 4, seed=s) * 0.5**s for s in range(4)])
    out = quantizer(latent)
    errors = [(quantizer.decode_first(out.indices, stages=n) - latent).square().mean().item() for n in range(1, 5)]
    assert errors == sorted(errors, reverse=True)
    assert torch.equal(quantizer.decode_first(out.indices, stages=4), out.quantized)
    for wrong in (0, 5):
        with pytest.raises(ValueError, match="stages must be from 1 to 4"):
            quantizer.decode_first(out.indices, stages=wrong)
    with pytest.raises(ValueError, match="out of range"):
        quantizer.decode_first(out.indices + 64, stages=1)


def test_stage_dropout_cuts_whole_examples_in_training_only():
    torch.manual_seed(0)
    quantizer = RVQ(4, stages=3, codebook_size=16, stage_dropout=1.0).train()
    latent = random(300, 5, 4)
    out = quantizer(latent)
    partial = torch.stack([quantizer.decode_first(out.indices, stages=n) for n in (1, 2, 3)])
    same = (partial == out.quantized).flatten(2).all(-1)  # (3, 300)
    share = same.float().mean(1)
    assert same.any(0).all(), "every example is a prefix sum"
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), atol=0.1, rtol=0)
    out = quantizer.eval()(latent)
    assert torch.equal(out.quantized, quantizer.decode(out.indices))


def test_rsq_starts_as_gsq_and_its_stages_fit_their_residuals():
    torch.manual_seed(0)
    quantizer = RSQ(8, groups=2, stages=3, codebook_size=256).eval()
    gsq = GSQ(8, groups=2, codebook_size=256)
    with torch.no_grad():
        gsq.codebook.copy_(quantizer.quantizers[0].codebook)
    latent = random(3000, 8)
    out, first = quantizer(latent), gsq.eval()(latent)
    assert torch.equal(out.indices.view(3000, 2, 3)[..., 0], first.indices)
    residual = F.normalize(latent.view(3000, 2, 4), dim=-1) - first.quantized.view(3000, 2, 4)
    codebook = quantizer.quantizers[1].codebook.detach()
    value = codebook[out.indices.view(3000, 2, 3)[..., 1]]
    fitted = (residual * value).sum(-1).mean() / codebook.norm(dim=-1).mean()  # best single length for these directions
    assert codebook.norm(dim=-1).std() < 1e-6
    assert codebook.norm(dim=-1).mean().item() == pytest.approx(fitted.item(), rel=0.1)


def test_kmeans_start_of_all_stages():
    torch.manual_seed(0)
    quantizer = RVQ(4, stages=3, codebook_size=32, init="kmeans").train()
    latent = 5 * random(2000, 4)
    quantizer.update(latent, quantizer(latent).indices)
    out = quantizer.eval()(latent)
    errors = [(quantizer.decode_first(out.indices, stages=n) - latent).square().mean().item() for n in (1, 2, 3)]
    assert errors[2] < 0.5 * errors[1] < 0.25 * errors[0]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (RVQ, {"dim": 4, "stages": 0}, "stages must be a whole number of at least 1"),
        (RVQ, {"dim": 4, "stage_dropout": 1.5}, "stage_dropout must be a finite number from 0 to 1"),
        (RVQ, {"dim": 4, "codebook_size": 1}, "codebook_size must be a whole number of at least 2"),
        (RSQ, {"dim": 4, "groups": 4}, "groups of at least 2 channels"),
    ],
)
def test_bad_options(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)
