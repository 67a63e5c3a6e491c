"""The Leech lattice by its defining counts, fixed spherical codes by their geometry, predictions by simulation."""

import math

import pytest
import torch
from scipy import integrate, special
from torch.nn import functional as F

from gsqtok.quantizers import FibonacciSphere, Leech, RandomSphere
from gsqtok.quantizers.leech import golay_code, leech_sphere
from gsqtok.quantizers.sphere import fibonacci_sphere, random_code_error, random_sphere, sphere_bound
from gsqtok.search import nearest


def test_weights_of_the_golay_code():
    """Conway and Sloane, chapter 3: 1, 759, 2576, 759, 1 words of weight 0, 8, 12, 16, 24; closed under addition."""
    words = golay_code()
    assert torch.equal(
        words.sum(1).bincount(),
        torch.zeros(25, dtype=torch.int64).index_put_(
            (torch.tensor([0, 8, 12, 16, 24]),), torch.tensor([1, 759, 2576, 759, 1])
        ),
    )
    numbers = (words << torch.arange(24)).sum(1)
    assert len(numbers.unique()) == 4096
    assert torch.isin(numbers[:, None] ^ numbers[:50], numbers).all()


def test_leech_lattice_by_its_inner_products():
    """From any shortest vector, 1, 4600, 47104, 93150, 47104, 4600, 1 others at cosine 1, 1/2, 1/4, 0, ..., -1.

    Conway and Sloane, chapter 10, table 10.2 (shell of type 2).
    """
    points = leech_sphere()
    assert points.shape == (196_560, 24)
    whole = (points.double() * 32**0.5).round()
    assert torch.equal(whole.square().sum(1), torch.full((196_560,), 32.0).double())
    assert len(whole.unique(dim=0)) == 196_560
    assert torch.equal(whole.unique(dim=0), (-whole).unique(dim=0))
    for vector in whole[[0, 1103, 1104, 60_000, 98_256, 196_559]]:
        products = (whole @ vector).long()
        values, counts = products.unique(return_counts=True)
        assert values.tolist() == [-32, -16, -8, 0, 8, 16, 32]
        assert counts.tolist() == [1, 4600, 47104, 93150, 47104, 4600, 1]


def test_leech_quantizer():
    quantizer = Leech(48, groups=2).eval()
    assert quantizer.bits == pytest.approx(2 * 17.5846, abs=1e-4)
    latent = torch.randn(200, 48, generator=torch.Generator().manual_seed(0))
    out = quantizer(latent)
    cosine = (F.normalize(latent.view(200, 2, 24), dim=-1) * out.quantized.view(200, 2, 24)).sum(-1)
    best = (F.normalize(latent.view(200, 2, 24), dim=-1) @ leech_sphere().T).amax(-1)
    torch.testing.assert_close(cosine, best)
    assert torch.equal(quantizer.state_dict()["codebook"], leech_sphere())
    with pytest.raises(ValueError, match="dim must be 24, got 16"):
        Leech(16)


@pytest.mark.parametrize("d", [2, 3, 4, 8])
def test_fibonacci_lattice_is_even(d):
    """Every direction alike, and a smaller error than random points in few dimensions."""
    points = fibonacci_sphere(d, 4096)
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(4096))
    torch.testing.assert_close(points.T @ points / 4096, torch.eye(d) / d, atol=0.02, rtol=0)
    target = random_sphere(d, 2000, seed=5)
    error = (points[nearest(target, points)] - target).square().sum(-1).mean().item()
    assert error < (0.9 if d < 4 else 1.01) * random_code_error(d, 4096)


def test_the_golden_spiral_at_three_dimensions():
    """Gonzalez 2010: latitudes asin(2 (j + 1/2) / V - 1), longitudes in steps of the golden angle."""
    points = fibonacci_sphere(3, 100).double()
    j = torch.arange(100, dtype=torch.float64)
    z = 1 - 2 * (j + 0.5) / 100
    golden = (1 + math.sqrt(5)) / 2
    longitude = 2 * math.pi * j / golden
    expected = torch.stack([z, (1 - z**2).sqrt() * longitude.cos(), (1 - z**2).sqrt() * longitude.sin()], -1)
    torch.testing.assert_close(points, expected, atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_codebook():
    a, b, c = (RandomSphere(6, groups=2, codebook_size=64, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.codebook, b.codebook)
    assert not torch.equal(a.codebook, c.codebook)


@pytest.mark.parametrize(("d", "codewords"), [(2, 16), (2, 4096), (3, 256), (4, 1024), (8, 4096), (16, 4096)])
def test_predicted_error_of_a_random_code_by_simulation(d, codewords):
    errors = []
    for seed in range(max(4, 6400 // codewords)):  # small codes differ much from each other
        codebook, target = random_sphere(d, codewords, seed), random_sphere(d, 2000, seed=1000 + seed)
        errors.append((codebook[nearest(target, codebook)].double() - target).square().sum(-1).mean())
    predicted = random_code_error(d, codewords)
    assert torch.stack(errors).mean().item() == pytest.approx(predicted, rel=0.08)
    assert sphere_bound(d, codewords) < predicted


@pytest.mark.parametrize(("d", "codewords"), [(2, 7), (3, 1000), (8, 8192), (24, 196_560), (32, 2**18)])
def test_predictions_against_scipy(d, codewords):
    """The share of a cap by the regularised incomplete beta function (Li 2011), integrated by another library."""

    def share(angle):
        half = special.betainc((d - 1) / 2, 0.5, math.sin(angle) ** 2) / 2
        return half if angle <= math.pi / 2 else 1 - half

    def integral(function, end):
        points = sorted({end * 10**-k for k in (1, 2, 3)})
        return integrate.quad(function, 0, end, points=points, limit=500)[0]

    random_code = integral(lambda t: 2 * math.sin(t) * math.exp(codewords * math.log1p(-min(share(t), 1 - 1e-16))), 3.1)
    bound = integral(lambda t: 2 * math.sin(t) * max(0.0, 1 - codewords * share(t)), 3.1)
    assert random_code_error(d, codewords) == pytest.approx(random_code, rel=1e-4)
    assert sphere_bound(d, codewords) == pytest.approx(bound, rel=1e-3)


def test_the_circle_in_closed_form():
    """At d = 2 the bound is met: V even arcs, mean of 2 - 2 cos over half an arc."""
    for codewords in (2, 5, 1000):
        half = math.pi / codewords
        expected = 2 - 2 * math.sin(half) / half
        assert sphere_bound(2, codewords) == pytest.approx(expected, rel=1e-3)
        assert random_code_error(2, codewords) > expected


def test_leech_lies_between_the_bound_and_a_random_code():
    target = random_sphere(24, 1000)
    points = leech_sphere()
    error = (points[nearest(target, points)] - target).square().sum(-1).mean().item()
    assert sphere_bound(24, 196_560) < error < random_code_error(24, 196_560)


def test_bad_options():
    with pytest.raises(ValueError, match="groups of at least 2 channels"):
        FibonacciSphere(4, groups=4)
    with pytest.raises(ValueError, match="codebook_size must be a whole number of at least 2"):
        RandomSphere(4, codebook_size=1)
