"""VQ against hand-worked cases, float64 formulas and vector-quantize-pytorch."""

import pytest
import torch
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from gsqtok.quantizers import RVQ, VQ
from gsqtok.quantizers.rotation import rotation_trick


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def set_codebook(quantizer, codebook):
    with torch.no_grad():
        quantizer.codebook.copy_(torch.as_tensor(codebook, dtype=torch.float32))
    return quantizer


def test_nearest_codeword_by_hand():
    quantizer = set_codebook(VQ(4, groups=2, codebook_size=3), [[1, 0], [0, 2], [-3, 0]]).eval()
    out = quantizer(torch.tensor([0.4, 0.1, -1.8, 0.0]))
    assert out.indices.tolist() == [0, 2]
    assert out.quantized.tolist() == [1, 0, -3, 0]
    assert out.losses["codebook"].item() == pytest.approx((0.36 + 0.01 + 1.44) / 4)


def test_values_losses_and_gradients_of_vector_quantize_pytorch():
    peer = VectorQuantize(
        dim=8,
        codebook_size=64,
        learnable_codebook=True,
        ema_update=False,
        commitment_weight=0.25,
        rotation_trick=False,
    )
    quantizer = set_codebook(
        VQ(
            8,
            codebook_size=64,
        ),
        peer.codebook.detach(),
    )
    latent = random(1, 200, 8)
    mine, theirs = latent.clone().requires_grad_(), latent.clone().requires_grad_()
    out = quantizer(mine)
    their_value, their_index, _ = peer.eval()(theirs)
    assert torch.equal(out.indices[..., 0], their_index)
    torch.testing.assert_close(out.quantized, their_value)
    their_value, _, their_loss = peer.train()(theirs)
    (their_loss.sum() + their_value.square().sum()).backward()
    (0.25 * out.losses["commitment"] + out.quantized.square().sum()).backward()
    torch.testing.assert_close(0.25 * out.losses["commitment"], their_loss.squeeze())
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_cosine_lookup_of_vector_quantize_pytorch():
    peer = VectorQuantize(dim=8, codebook_size=64, use_cosine_sim=True).eval()
    quantizer = set_codebook(VQ(8, codebook_size=64, metric="cosine"), 3 * peer.codebook).eval()
    value, index, _ = peer(random(1, 200, 8))
    out = quantizer(random(1, 200, 8))
    assert torch.equal(out.indices[..., 0], index)
    torch.testing.assert_close(out.quantized, value)


def test_rotation_gradient_is_that_of_the_explicit_matrix():
    latent, quantized, gradient = (random(10, 5, seed=seed).double() for seed in range(3))
    latent.requires_grad_()
    out = rotation_trick(latent, quantized)
    assert torch.equal(out, quantized)
    out.backward(gradient)
    for e, q, g, got in zip(latent.detach(), quantized, gradient, latent.grad, strict=True):
        a, b = e / e.norm(), q / q.norm()
        r = (a + b) / (a + b).norm()
        rotation = torch.eye(5) - 2 * torch.outer(r, r) + 2 * torch.outer(b, a)
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(5).double())
        torch.testing.assert_close(q.norm() / e.norm() * rotation @ e, q)
        torch.testing.assert_close(got, q.norm() / e.norm() * rotation.T @ g)


def test_rotation_gradient_is_that_of_vector_quantize_pytorch():
    latent, quantized = random(50, 6), random(50, 6, seed=1)
    mine, theirs = latent.clone().requires_grad_(), latent.clone().requires_grad_()
    rotation_trick(mine, quantized).square().sum().backward()
    rotate_to(theirs, quantized).square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("latent", [[0.0, 0.0], [-1.0, -2.0], [1e-30, 0.0]])
def test_rotation_of_a_zero_or_opposite_latent_is_finite(latent):
    latent = torch.tensor(latent, requires_grad=True)
    rotation_trick(latent, torch.tensor([1.0, 2.0])).sum().backward()
    assert latent.grad.isfinite().all()
    assert latent.grad.norm() < 10


def step(quantizer, latent):
    quantizer.update(latent, quantizer(latent).indices)


def test_kmeans_start_finds_the_clusters():
    torch.manual_seed(0)
    centres = 10 * random(8, 4)
    quantizer = VQ(4, codebook_size=64, init="kmeans").train()
    assert quantizer.follows
    step(quantizer, (centres.repeat(64, 1) + 0.1 * random(512, 4)))
    distance, nearest = torch.cdist(centres, quantizer.codebook).min(-1)
    assert distance.max() < 0.5
    assert len(nearest.unique()) == 8
    assert not quantizer.follows, "from here on only the optimizer moves the codebook"
    settled = quantizer.codebook.clone()
    step(quantizer, random(512, 4))
    assert torch.equal(quantizer.codebook, settled)


@pytest.mark.parametrize("kind", [VQ, RVQ])
def test_kmeans_start_gathers_until_there_are_enough(kind):
    """Nothing moves until there are 4 latents a codeword, and then no codeword is there twice."""
    torch.manual_seed(0)
    quantizer = kind(4, groups=2, codebook_size=256, init="kmeans").train()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    for seed in range(8):
        assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
        latent = random(64, 4, seed=seed)
        step(quantizer, latent)
    codebooks = [p for name, p in quantizer.named_parameters() if name.endswith("codebook")]
    assert all(len(codebook.unique(dim=0)) == 256 for codebook in codebooks)
    latent = torch.cat([random(64, 4, seed=seed) for seed in range(8)])
    assert quantizer(latent).losses["codebook"] < 0.1


def test_kmeans_start_is_not_repeated_after_a_load():
    quantizer = VQ(4, codebook_size=16, init="kmeans").train()
    resumed, early = (VQ(4, codebook_size=16, init="kmeans").train() for _ in range(2))
    early.load_state_dict(quantizer.state_dict())
    assert early.follows
    step(quantizer, random(64, 4))
    for other in (resumed, early):
        other.load_state_dict(quantizer.state_dict())
        assert not other.follows
        step(other, random(64, 4, seed=1))
        torch.testing.assert_close(other.state_dict(), quantizer.state_dict())


def test_kmeans_takes_the_mean_of_what_each_centre_won():
    for seed in range(20):
        torch.manual_seed(seed)
        quantizer = VQ(1, codebook_size=2, init="kmeans").train()
        step(quantizer, torch.tensor([[-10.0]] * 8 + [[10.0], [13.0]] * 8))
        torch.testing.assert_close(quantizer.codebook.detach().flatten().sort().values, torch.tensor([-10, 11.5]))


def test_start_and_bad_options():
    codebook = VQ(8, codebook_size=512).codebook
    assert codebook.abs().max() <= 1 / 512
    with pytest.raises(ValueError, match="metric must be one of euclidean, cosine, got 'manhattan'"):
        VQ(8, metric="manhattan")
    with pytest.raises(ValueError, match="only the sign"):
        VQ(8, groups=8, metric="cosine")
    with pytest.raises(ValueError, match="gradient must be one of"):
        VQ(8, gradient="none")
    with pytest.raises(ValueError, match="multiple of groups"):
        VQ(8, groups=3)


def test_cosine_hands_on_unit_vectors():
    out = VQ(6, groups=2, codebook_size=32, metric="cosine")(random(10, 6))
    torch.testing.assert_close(out.quantized.detach().unflatten(-1, (2, 3)).norm(dim=-1), torch.ones(10, 2))
