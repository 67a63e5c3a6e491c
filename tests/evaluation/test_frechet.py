"""Fréchet distances against scipy's matrix square root, numpy, closed forms and torch-fidelity; reference files."""

import logging
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from gsqtok.evaluation import FrechetDistance, Reference, ReferenceSetError
from gsqtok.evaluation.frechet import Moments

DIM = 12


def features(count, seed=0, dim=DIM, shift=0.0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, dim)) @ np.random.default_rng(99).normal(size=(dim, dim))
    return torch.from_numpy((mixed + 3 + shift).astype(np.float32))


def by_scipy(real, fake):
    real, fake = real.double().numpy(), fake.double().numpy()
    mean = real.mean(0) - fake.mean(0)
    a, b = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    return mean @ mean + np.trace(a) + np.trace(b) - 2 * np.trace(scipy.linalg.sqrtm(a @ b)).real


def distance(real, fake, batch=7):
    metric = FrechetDistance(real.shape[1])
    for part in real.split(batch):
        metric.update(part, real=True)
    for part in fake.split(batch + 1):
        metric.update(part, real=False)
    return metric.compute()


def test_equals_scipy_and_torch_fidelity():
    real, fake = features(50), features(41, seed=1, shift=0.5)
    result = distance(real, fake)
    assert result.dtype == torch.float64
    assert result.item() == pytest.approx(by_scipy(real, fake), rel=1e-9)
    statistics = [
        {"mu": x.double().numpy().mean(0), "sigma": np.cov(x.double().numpy(), rowvar=False)} for x in (real, fake)
    ]
    theirs = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert result.item() == pytest.approx(theirs, rel=1e-9)


def test_shift_and_scale_have_a_closed_form():
    real = features(40)
    assert distance(real, real + 2).item() == pytest.approx(4 * DIM, rel=1e-6)
    # a set scaled about its mean: the trace of the covariance times (scale - 1)^2
    mean = real.double().mean(0)
    scaled = mean + 3 * (real.double() - mean)
    assert distance(real.double(), scaled).item() == pytest.approx(4 * np.trace(np.cov(real.T)), rel=1e-6)


def test_large_means_do_not_drown_the_covariance():
    real, fake = features(60).double() * 1e-3 + 100, features(60, seed=1).double() * 1e-3 + 100
    assert distance(real, fake).item() == pytest.approx(by_scipy(real, fake), rel=1e-5)


def test_degenerate_sets(caplog):
    real = features(50)
    assert 0 <= distance(real, real).item() < 1e-6
    constant = real[:1].expand(30, -1)
    assert 0 <= distance(constant, constant).item() < 1e-9
    spread = np.trace(np.cov(real.T)) + (real.double().mean(0) - real[0].double()).square().sum().item()
    assert distance(constant, real).item() == pytest.approx(spread, rel=1e-6)
    assert "full rank" not in caplog.text
    few = features(5, seed=3)
    with caplog.at_level(logging.WARNING, "gsqtok.evaluation"):
        assert distance(few, features(50)).item() == pytest.approx(by_scipy(few, features(50)), rel=1e-5)
        assert "12 features from 5 images" in caplog.text
        assert math.isnan(distance(few, few[:1]).item())
        assert "two images on each side, got 5 and 1" in caplog.text


def test_bad_input():
    metric = FrechetDistance(DIM)
    with pytest.raises(ValueError, match=r"\(B, 12\)"):
        metric.update(torch.zeros(2, DIM + 1), real=True)
    with pytest.raises(ValueError, match="not finite"):
        metric.update(torch.full((2, DIM), math.nan), real=False)
    with pytest.raises(ValueError, match="reference has 3 features, not 12"):
        metric.set_reference(Moments(np.zeros(3), np.eye(3), 5))


def test_a_saved_reference_gives_the_same_distance(tmp_path):
    real, fake = features(50), features(41, seed=1)
    first = FrechetDistance(DIM)
    first.update(real, real=True)
    moments = first.moments()
    np.testing.assert_allclose(moments.mean, real.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(real.double().numpy(), rowvar=False), rtol=1e-9)
    assert moments.count == 50
    Reference(moments, None, {"name": "adm"}, {"source": "x"}).save(tmp_path / "a" / "r.npz")
    saved = Reference.load(tmp_path / "a" / "r.npz")
    assert (saved.protocol, saved.data, saved.spatial) == ({"name": "adm"}, {"source": "x"}, None)
    second = FrechetDistance(DIM)
    second.set_reference(saved.pooled)
    second.update(fake, real=False)
    assert second.compute().item() == pytest.approx(distance(real, fake).item(), rel=1e-9)


def test_files_of_others(tmp_path, caplog):
    np.savez(tmp_path / "adm.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3), mu_s=np.zeros(2), sigma_s=np.eye(2))
    theirs = Reference.load(tmp_path / "adm.npz")
    assert theirs.pooled.mean.dtype == np.float64
    assert theirs.spatial.covariance.shape == (2, 2)
    theirs.check("adm.npz", {"name": "adm"})
    assert "does not say how it was made" in caplog.text
    np.savez(tmp_path / "other.npz", tokens=np.zeros(3))
    np.savez(tmp_path / "unfit.npz", mu=np.zeros(3), sigma=np.eye(2))
    (tmp_path / "text.npz").write_text("mu")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("other", "unfit", "text", "empty"):
        with pytest.raises(ReferenceSetError, match=rf"{name}\.npz holds no reference statistics"):
            Reference.load(tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError):
        Reference.load(tmp_path / "absent.npz")


def test_an_unlike_protocol_is_warned_of_and_unlike_features_are_refused(caplog):
    network = {"network": "inception", "weights_sha256": "ab"}
    reference = Reference(Moments(np.zeros(2), np.eye(2)), None, {"name": "adm", "crop": "center", "features": network})
    reference.check("r.npz", {"name": "adm", "crop": "center", "features": network, "reference": "originals"})
    assert not caplog.text
    reference.check("r.npz", {"name": "native", "crop": "none", "features": network})
    assert "another protocol: name: adm against native; crop: center against none" in caplog.text
    with pytest.raises(ReferenceSetError, match="weights sha256: ab against cd"):
        reference.check("r.npz", {"name": "adm", "crop": "center", "features": {**network, "weights_sha256": "cd"}})
