"""LFQ and BSQ against sums over all 2^d codes in float64, hand-worked cases, and vector-quantize-pytorch."""

import math

import pytest
import torch
from torch.nn import functional as F
from vector_quantize_pytorch import LFQ as Peer

from gsqtok.quantizers import BSQ, LFQ
from gsqtok.quantizers.binary import binary_entropies
from gsqtok.quantizers.sphere import bsq_error


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_codes(bits):
    return ((torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1).double() * 2 - 1


def test_signs_by_hand():
    out = LFQ(4, groups=2)(torch.tensor([0.3, -2.0, -0.1, 0.0]))
    assert out.quantized.tolist() == [1, -1, -1, -1], "0 counts as below"
    assert out.indices.tolist() == [1, 0], "channel 0 is the lowest bit"
    assert LFQ(3).decode(torch.tensor([6])).tolist() == [-1, 1, 1]


def test_bsq_by_hand():
    out = BSQ(4)(torch.tensor([3.0, -4.0, 0.1, -0.1]))
    assert out.quantized.tolist() == [0.5, -0.5, 0.5, -0.5]
    assert out.indices.tolist() == [5]


@pytest.mark.parametrize("kind", [LFQ, BSQ])
@pytest.mark.parametrize("bits", [1, 5, 8])
def test_entropies_are_those_of_the_softmax_over_all_codes(kind, bits):
    quantizer = kind(bits, temperature=0.7, commitment_weight=0.25).train()
    latent = random(50, bits).requires_grad_()
    out = quantizer(latent)
    out.loss.backward()

    z = latent.detach().double().requires_grad_()
    u, codes = z, all_codes(bits)
    if kind is BSQ:
        u, codes = z / z.norm(dim=-1, keepdim=True), codes / math.sqrt(bits)
    p = (-(u[:, None] - codes).square().sum(-1) / 0.7).softmax(-1)
    sample, batch = torch.special.entr(p).sum(-1).mean(), torch.special.entr(p.mean(0)).sum()
    nearest = codes[torch.cdist(u, codes).argmin(-1)]
    loss = 0.1 * (sample - batch) + 0.25 * (u - nearest).square().mean()
    loss.backward()

    torch.testing.assert_close(out.quantized.double(), nearest)
    torch.testing.assert_close(out.losses["sample_entropy"].double(), sample, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.losses["batch_entropy"].double(), batch, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.loss.double(), loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(latent.grad.double(), z.grad, rtol=1e-4, atol=1e-6)


def test_chunked_entropy_is_an_upper_bound_met_by_independent_chunks():
    logits = 3 * random(500, 12)
    exact = binary_entropies(logits, 12)
    for chunk in (1, 3, 5, 6):
        sample, batch = binary_entropies(logits, chunk)
        torch.testing.assert_close(sample, exact[0])
        assert exact[1] <= batch + 1e-4
        assert batch <= 12 * math.log(2) + 1e-4
    a, b = random(32, 3), random(32, 3, seed=1)
    independent = torch.cat([a.repeat_interleave(32, 0), b.repeat(32, 1)], dim=1)  # all pairs of the two chunks
    torch.testing.assert_close(binary_entropies(independent, 3)[1], binary_entropies(independent, 6)[1])


def test_extreme_logits_give_finite_entropies():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    sample, batch = binary_entropies(logits, 3)
    (sample + batch).backward()
    assert sample.item() == pytest.approx(math.log(2))
    assert batch.item() == pytest.approx(math.log(2))
    assert logits.grad.isfinite().all()


def test_many_bits_need_no_codebook():
    quantizer = LFQ(62)
    out = quantizer(random(100, 62))
    assert quantizer.codebook_size == 2**62
    assert not quantizer.state_dict()
    assert out.losses["batch_entropy"] > 30 * math.log(2)
    with pytest.raises(ValueError, match="a group of 63 channels gives 63 bits, an index has 62; use more groups"):
        LFQ(63)


@pytest.mark.parametrize("spherical", [False, True])
def test_same_as_vector_quantize_pytorch(spherical):
    """Its bits run the other way round, and it clamps probabilities at 1e-5 in the logarithm."""
    peer = Peer(dim=8, codebook_size=256, spherical=spherical, commitment_loss_weight=0.25).train()
    quantizer = (BSQ if spherical else LFQ)(8, temperature=0.5, commitment_weight=0.25)
    latent = random(1, 300, 8)
    (value, index, _), losses = peer(latent, inv_temperature=2.0, return_loss_breakdown=True)
    out = quantizer(latent)
    torch.testing.assert_close(out.quantized, value)
    flipped = sum((out.indices[..., 0] >> bit & 1) << (7 - bit) for bit in range(8))
    assert torch.equal(flipped, index)
    torch.testing.assert_close(out.losses["sample_entropy"], losses.per_sample_entropy, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(out.losses["batch_entropy"], losses.batch_entropy, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(out.losses["commitment"], losses.commitment)


@pytest.mark.parametrize("d", [1, 2, 9, 18])
def test_error_of_bsq_in_closed_form(d):
    u = F.normalize(random(200_000, d).double(), dim=-1)
    measured = (u - BSQ(d)(u).quantized.double()).square().sum(-1)
    assert measured.mean().item() == pytest.approx(bsq_error(d), rel=0.01, abs=1e-6)
    assert measured.max() < 2 - 2 / math.sqrt(d) + 1e-6, "the paper's bound"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a finite number above 0"),
        ({"entropy_bits": 0}, "entropy_bits must be a whole number from 1 to 24"),
        ({"entropy_weight": -1.0}, "entropy_weight must be a finite number of at least 0"),
        ({"groups": 3}, "multiple of groups"),
    ],
)
@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_bad_options(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(8, **options)
