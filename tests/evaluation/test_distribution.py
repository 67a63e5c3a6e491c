"""Distribution metrics against torch-fidelity's own run over the same images, numpy and prdc."""

import math

import numpy as np
import prdc
import pytest
import torch
from mean_colours import MeanColours
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_isc import isc_features_to_metric

from gsqtok.evaluation import DistributionMetrics, Reference, ReferenceSetError
from gsqtok.evaluation.frechet import Moments


def images(count, seed, side=32):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear").byte()


def frechet(a, b):
    a, b = (x.double().numpy() for x in (a, b))
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    return np.square(a.mean(0) - b.mean(0)).sum() + sum(np.trace(c) for c in covariances) - 2 * root


def measured(network, real, fake, keys, batch=4, **options):
    metrics = DistributionMetrics(network, **options)
    for part in range(0, len(real), batch):
        at = slice(part, part + batch)
        metrics.update(fake[at], real[at], keys[at])
    return metrics


def test_every_figure_of_a_small_network(mean_colours):
    real, fake, keys = images(24, 0), images(24, 1), [f"{i:02}" for i in range(24)]
    found = measured(mean_colours, real, fake, keys, neighbours=True).compute()
    ours, theirs = mean_colours(fake), mean_colours(real)
    assert found["frechet_distance_mean_colours"] == pytest.approx(frechet(theirs.pooled, ours.pooled), rel=1e-6)
    spatial = found["spatial_frechet_distance_mean_colours"]
    assert spatial == pytest.approx(frechet(theirs.spatial, ours.spatial), rel=1e-6)
    score = isc_features_to_metric(ours.logits)
    assert found["inception_score_mean_colours"] == pytest.approx(score["inception_score_mean"], rel=1e-9)
    expected = prdc.compute_prdc(theirs.pooled.numpy(), ours.pooled.numpy(), 5)
    for name, value in expected.items():
        assert found[f"{name}_mean_colours"] == pytest.approx(value)
    assert not any("fid" in name for name in found)


def test_order_and_batches_change_nothing(mean_colours):
    real, fake, keys = images(24, 0), images(24, 1), [f"{i:02}" for i in range(24)]
    first = measured(mean_colours, real, fake, keys, neighbours=True).compute()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = measured(mean_colours, real[order], fake[order], [keys[i] for i in order], 7, neighbours=True).compute()
    assert shuffled == pytest.approx(first, rel=1e-6)


def test_degenerate_sets(mean_colours, caplog):
    one = images(1, 0)
    found = measured(mean_colours, one, one, ["a"], neighbours=True).compute()
    assert all(math.isnan(value) for value in found.values())
    assert "two images on each side" in caplog.text
    same = one.expand(12, -1, -1, -1)
    found = measured(mean_colours, same, same, [str(i) for i in range(12)]).compute()
    assert found["frechet_distance_mean_colours"] == pytest.approx(0, abs=1e-9)
    assert found["inception_score_mean_colours"] == pytest.approx(1)
    black = torch.zeros(12, 3, 32, 32, dtype=torch.uint8)
    found = measured(mean_colours, black, black, [str(i) for i in range(12)]).compute()
    assert all(math.isfinite(value) for value in found.values())


def test_a_saved_reference(mean_colours, tmp_path):
    real, fake, keys = images(24, 0), images(24, 1), [f"{i:02}" for i in range(24)]
    first = measured(mean_colours, real, fake, keys, neighbours=True)
    Reference(*first.moments()).save(tmp_path / "r.npz")
    again = measured(mean_colours, real, fake, keys, neighbours=True, reference=Reference.load(tmp_path / "r.npz"))
    assert again.compute() == pytest.approx(first.compute(), rel=1e-9)
    pooled = Reference.load(tmp_path / "r.npz").pooled
    without = measured(mean_colours, real, fake, keys, reference=Reference(pooled)).compute()
    assert "spatial_frechet_distance_mean_colours" not in without
    with pytest.raises(ValueError, match="3 features, not 6"):
        DistributionMetrics(mean_colours, reference=Reference(Moments(np.zeros(3), np.eye(3))))
    assert issubclass(ReferenceSetError, ValueError)


class Images(torch.utils.data.Dataset):
    """As torch-fidelity takes them."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


class TheirMeanColours(FeatureExtractorBase):
    """The network of ``mean_colours`` as torch-fidelity calls its Inception, whose features test_features compares."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return "pooled", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return {"fid": "pooled", "isc": "logits"}[metric]

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        features = MeanColours()(images)
        return tuple(getattr(features, name) for name in self.features_list)


def test_equals_a_run_of_torch_fidelity(mean_colours):
    real, fake, keys = images(11, 0), images(11, 1), [f"{i:02}" for i in range(11)]
    found = measured(mean_colours, real, fake, keys).compute()
    register_feature_extractor("mean colours", TheirMeanColours)
    theirs = calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        fid=True,
        isc=True,
        feature_extractor="mean colours",
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=11,
    )
    distance = found["frechet_distance_mean_colours"]
    assert distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert found["inception_score_mean_colours"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert found["inception_score_std_mean_colours"] == pytest.approx(theirs["inception_score_std"], rel=1e-6)
