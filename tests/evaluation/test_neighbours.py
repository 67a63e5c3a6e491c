"""Precision, recall, density and coverage against the authors' package and by brute force."""

import math

import numpy as np
import pytest
import torch
from prdc import compute_prdc

from gsqtok.evaluation import neighbours, precision_recall_density_coverage


def sets(n=60, m=45, dim=6):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, dim)).astype(np.float32), (rng.normal(size=(m, dim)) * 0.8 + 0.5).astype(np.float32)


@pytest.mark.parametrize("nearest", [1, 3, 5])
def test_equals_the_authors_package(nearest, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", 16)  # several blocks
    real, fake = sets()
    result = precision_recall_density_coverage(torch.from_numpy(real), torch.from_numpy(fake), nearest)
    assert result == pytest.approx(compute_prdc(real, fake, nearest), abs=1e-12)
    assert 0 < result["precision"] < 1


def test_by_brute_force():
    real, fake = (x.astype(float) for x in sets(20, 15, 3))
    radius = [sorted(math.dist(a, b) for b in real)[5] for a in real]
    fake_radius = [sorted(math.dist(a, b) for b in fake)[5] for a in fake]
    inside = [[math.dist(a, b) < r for a, r in zip(real, radius, strict=True)] for b in fake]
    recalled = [any(math.dist(a, b) < r for b, r in zip(fake, fake_radius, strict=True)) for a in real]
    assert precision_recall_density_coverage(torch.from_numpy(real), torch.from_numpy(fake)) == pytest.approx(
        {
            "precision": np.mean([any(row) for row in inside]),
            "recall": np.mean(recalled),
            "density": np.mean([sum(row) for row in inside]) / 5,
            "coverage": np.mean(np.any(inside, axis=0)),
        }
    )


def test_degenerate_sets(caplog):
    real = torch.from_numpy(sets()[0])
    same = precision_recall_density_coverage(real, real)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    apart = precision_recall_density_coverage(real, real + 1000)
    assert set(apart.values()) == {0}
    # balls of constant features have no inside
    assert set(precision_recall_density_coverage(torch.ones(9, 2), torch.ones(9, 2)).values()) == {0}
    assert all(math.isnan(v) for v in precision_recall_density_coverage(real[:5], real).values())
    assert "more than 5 images, got 5 and 60" in caplog.text


def test_bad_input():
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        precision_recall_density_coverage(torch.zeros(9, 2), torch.zeros(9, 3))
    with pytest.raises(ValueError, match="not finite"):
        precision_recall_density_coverage(torch.full((9, 2), math.inf), torch.zeros(9, 2))
