"""GSQ against hand-worked cases, float64 formulas of the paper, and vector-quantize-pytorch's cosine lookup."""

import math

import pytest
import torch
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from gsqtok.quantizers import GSQ


def with_codebook(codebook, dim, groups, **options):
    codebook = torch.as_tensor(codebook, dtype=torch.float32)
    quantizer = GSQ(dim, groups=groups, codebook_size=len(codebook), **options)
    with torch.no_grad():
        quantizer.codebook.copy_(codebook)
    return quantizer


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_lookup_is_by_angle_and_the_raw_codeword_is_handed_on():
    quantizer = with_codebook([[1, 0], [0, 2], [-3, 0]], dim=4, groups=2).eval()
    out = quantizer(torch.tensor([0.9, 0.1, -0.2, 0.1]))  # group 0 is (0.9, 0.1): channels stay together
    assert out.indices.tolist() == [0, 2]
    assert out.quantized.tolist() == [1, 0, -3, 0]


def test_normalized_output_lies_on_the_sphere():
    quantizer = with_codebook([[1, 0], [0, 2], [-3, 0]], dim=4, groups=2, output="normalized").eval()
    assert quantizer(torch.tensor([0.1, 0.9, -0.2, 0.1])).quantized.tolist() == [0, 1, -1, 0]
    torch.testing.assert_close(quantizer.decode(torch.tensor([2, 1])), torch.tensor([-1.0, 0.0, 0.0, 1.0]))


def test_without_a_norm_the_nearest_point_wins():
    latent = torch.tensor([1.8, 0.3])
    assert with_codebook([[1, 0], [2, 1]], 2, 1, norm="none").eval()(latent).indices.item() == 1
    assert with_codebook([[1, 0], [2, 1]], 2, 1, norm="l2").eval()(latent).indices.item() == 0


def test_l1_compares_points_of_the_cross_polytope():
    codebook, latent = random(40, 3), random(100, 3, seed=1)
    z, c = (x.double() / x.double().abs().sum(-1, keepdim=True) for x in (latent, codebook))
    expected = torch.cdist(z, c).argmin(-1)
    assert torch.equal(with_codebook(codebook, 3, 1, norm="l1").eval()(latent).indices[:, 0], expected)


def test_groups_of_one_channel_clip():
    quantizer = with_codebook([[-2.0], [-0.5], [0.25], [3.0]], dim=3, groups=3).eval()
    assert quantizer.norm == "clip"
    out = quantizer(torch.tensor([-7.0, 0.3, 0.7]))
    assert out.indices.tolist() == [0, 2, 3], "both sides are clipped to [-1, 1]: 0.7 is nearer to 1 than to 0.25"
    assert out.quantized.tolist() == [-2.0, 0.25, 3.0]


@pytest.mark.parametrize("norm", ["l2", "l1", "none", "clip"])
@pytest.mark.parametrize("output", ["raw", "normalized"])
def test_loss_and_gradients_are_the_papers(norm, output):
    """Section 3: mse(q, sg(zn)) + 0.25 mse(sg(q), zn), and the decoder's gradient goes straight through to zn."""
    d = 1 if norm == "clip" else 4
    quantizer = with_codebook(1.3 * random(16, d), 3 * d, 3, norm=norm, output=output).train()
    latent, target = random(20, 3 * d, seed=1).requires_grad_(), random(20, 3 * d, seed=2)
    out = quantizer(latent)
    (out.loss + (out.quantized * target).sum()).backward()

    normalize = {
        "l2": lambda x: x / x.norm(dim=-1, keepdim=True),
        "l1": lambda x: x / x.abs().sum(-1, keepdim=True),
        "none": lambda x: x,
        "clip": lambda x: x.clamp(-1, 1),
    }[norm]
    z = latent.detach().double().requires_grad_()
    codebook = quantizer.codebook.detach().double().requires_grad_()
    zn, cn = normalize(z.view(20, 3, d)), normalize(codebook)
    index = torch.cdist(zn, cn).argmin(-1)
    q = (codebook if output == "raw" else cn)[index]
    codebook_loss, commitment = (q - zn.detach()).square().mean(), (q.detach() - zn).square().mean()
    through = q.detach() + zn - zn.detach()
    (codebook_loss + 0.25 * commitment + (through.flatten(-2) * target).sum()).backward()

    assert torch.equal(out.indices, index)
    torch.testing.assert_close(out.quantized.double(), q.detach().flatten(-2))
    torch.testing.assert_close(out.losses["codebook"].double(), codebook_loss)
    torch.testing.assert_close(out.losses["commitment"].double(), commitment)
    torch.testing.assert_close(out.loss.double(), codebook_loss + 0.25 * commitment)
    torch.testing.assert_close(latent.grad.double(), z.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(quantizer.codebook.grad.double(), codebook.grad, rtol=1e-4, atol=1e-5)


def test_same_lookup_as_vector_quantize_pytorch():
    """Its cosine codebook is stored normalised, so the normalised output is what compares."""
    peer = VectorQuantize(dim=8, codebook_size=512, use_cosine_sim=True).eval()
    quantizer = with_codebook(peer.codebook, 8, 1, output="normalized").eval()
    latent = random(1, 1000, 8)
    theirs, indices, _ = peer(latent)
    out = quantizer(latent)
    assert torch.equal(out.indices[..., 0], indices)
    torch.testing.assert_close(out.quantized, theirs)


def test_every_codeword_of_a_fine_circle_is_found():
    """d = 2, V = 262,144: neighbours are 2.4e-5 apart, where float32 inner products tie."""
    angles = torch.arange(2**18, dtype=torch.float64) * (2 * math.pi / 2**18)
    quantizer = with_codebook(torch.stack([angles.cos(), angles.sin()], -1), 2, 1).eval()
    nudged = angles + 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(torch.stack([nudged.cos(), nudged.sin()], -1).float())
    assert torch.equal(out.indices[:, 0], torch.arange(2**18))


@pytest.mark.slow
def test_indices_above_float32_integers_are_exact():
    size = 2**24 + 3
    values = (torch.arange(size, dtype=torch.int32) + 0x3F800000).view(torch.float32)  # neighbours from 1.0 on
    quantizer = with_codebook(values[:, None], 1, 1, norm="none").eval()
    indices = torch.tensor([0, 1, 2**24 - 1, 2**24, 2**24 + 1, 2**24 + 2])[:, None]
    assert torch.equal(quantizer(values[indices]).indices, indices)
    assert torch.equal(quantizer.decode(indices), values[indices])


def test_initialization():
    torch.manual_seed(0)
    sphere = GSQ(8, groups=1, codebook_size=4096).codebook.detach()
    torch.testing.assert_close(sphere.norm(dim=-1), torch.ones(4096))
    second_moment = sphere.T @ sphere / 4096
    torch.testing.assert_close(second_moment, torch.eye(8) / 8, atol=0.01, rtol=0)  # uniform: no direction preferred
    assert sphere.mean(0).abs().max() < 0.03
    uniform = GSQ(8, groups=1, codebook_size=4096, init="uniform").codebook.detach() * 4096
    assert uniform.abs().max() <= 1
    assert uniform.std() == pytest.approx(1 / math.sqrt(3), rel=0.02)
    line = GSQ(4, groups=4, codebook_size=4096).codebook.detach()
    assert line.abs().max() <= 1
    assert line.std() == pytest.approx(1 / math.sqrt(3), rel=0.05)


def test_the_norm_follows_the_group_size():
    assert GSQ(8, groups=4).norm == "l2"
    assert GSQ(8, groups=8).norm == "clip"
    assert GSQ(8, groups=4).group_dim == 2
    assert GSQ(16, groups=8, codebook_size=262_144).bits == 144


def test_a_zero_latent_has_a_finite_gradient():
    quantizer = GSQ(4, groups=2, codebook_size=16).train()
    latent = torch.zeros(1, 4, requires_grad=True)
    out = quantizer(latent)
    (out.loss + F.mse_loss(out.quantized, torch.ones(1, 4))).backward()
    assert latent.grad.isfinite().all()
    assert out.loss.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 8, "groups": 3}, "dim must be a multiple of groups, got dim = 8, groups = 3"),
        ({"dim": 8, "groups": 0}, "groups must be a whole number of at least 1, got 0"),
        ({"dim": 8, "codebook_size": 1}, "codebook_size must be a whole number of at least 2, got 1"),
        ({"dim": 8, "norm": "l3"}, "norm must be one of l2, l1, none, clip or null, got 'l3'"),
        ({"dim": 8, "groups": 8, "norm": "l2"}, "use clip or none"),
        ({"dim": 8, "groups": 4, "norm": "clip"}, "'clip' is for groups of one channel, these have 2"),
        ({"dim": 8, "init": "zeros"}, "init must be one of sphere, uniform"),
        ({"dim": 8, "output": "cooked"}, "output must be one of raw, normalized"),
        ({"dim": 8, "commitment_weight": -1.0}, "commitment_weight must be a finite number of at least 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GSQ(**options)
