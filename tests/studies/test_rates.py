"""A nested tokenizer at its rates, and what its study says of them."""

import dataclasses

import pytest
import torch

from gsqtok.cli.demo import IMAGES
from gsqtok.data import ImageTransform, open_source
from gsqtok.evaluation import evaluate
from gsqtok.evaluation.features import Features
from gsqtok.quantizers import build_quantizer, quantizer_options
from gsqtok.studies import STUDIES
from gsqtok.studies.rates import metrics_by_groups, nested_metrics
from gsqtok.studies.scale import SCALES
from gsqtok.studies.table import Row, Table
from gsqtok.tokenizer import ImageTokenizer


class Means:
    """A network whose features are an image's mean colours."""

    dim, suffix = 3, "_means"

    def __call__(self, images):
        return Features(images.float().mean((2, 3)))

    def to(self, device):
        return self

    def record(self):
        return {"network": "means", "weights_sha256": "", "layer": ""}


def test_all_numbers_of_groups_in_one_pass_are_as_in_an_evaluation_each(tiny_config):
    torch.manual_seed(0)
    options = quantizer_options("gsq", groups=3, codebook_size=16, nested="uniform")
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, latent_dim=6, quantizer=options)).eval()
    source, transform = open_source(IMAGES), ImageTransform(32)
    found = metrics_by_groups(tokenizer, source, transform, features=Means(), batch_size=2)
    names = ("psnr", "ssim", "bits_per_pixel", "frechet_distance_means")
    assert set(found) == {f"{name}_groups_{k}" for name in names for k in (1, 2)}
    for k in (1, 2):
        result = evaluate(tokenizer, source, transform=transform, groups=k, features=Means())
        for name in names:
            assert found[f"{name}_groups_{k}"] == pytest.approx(result[name], rel=1e-6, abs=1e-9), name


def test_metrics_of_fixed_groups_are_those_of_an_evaluation(tiny_config):
    torch.manual_seed(0)
    options = quantizer_options("gsq", groups=4, codebook_size=16, nested="uniform")
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, quantizer=options)).eval()
    source, transform = open_source(IMAGES), ImageTransform(32)
    metrics = nested_metrics(tokenizer, source, transform, images=500)
    half = len(source) - len(source) // 2
    for k in (1, 2, 4):
        result = evaluate(tokenizer, source, transform=transform, groups=k)
        assert result.model["groups"] == k
        assert result["bits_per_pixel"] == metrics[f"bits_per_pixel_fixed_{k}"] == k * 4 / 16
        mean = sum(result.per_image["psnr"][-half:]) / half
        assert metrics[f"psnr_fixed_{k}"] == pytest.approx(mean, abs=1e-4)
    for k in (2, 3):
        for name in ("chosen", "predicted"):
            assert metrics[f"bits_per_pixel_{name}_{k}"] <= k * 4 / 16
        assert metrics[f"psnr_chosen_{k}"] > metrics["psnr_fixed_1"] - 0.5


def test_what_nesting_costs():
    def metrics(varied):
        if varied.get("trained") == "alone":
            return {"psnr": 20.0 + varied["K"], "bits_per_pixel": varied["K"] / 8, "usage": 1.0}
        loss = {"half full": -0.2, "half full, half mixed": 0.4}.get(varied["trained"], 0.5)
        fixed = {f"psnr_{kind}_{k}": 20.0 + k - loss for k in range(1, 9) for kind in ("groups", "fixed")}
        gain = {"geometric": 0.0, "uniform": 0.3}.get(varied["trained"], 0.05)
        return fixed | {f"psnr_predicted_{k}": fixed[f"psnr_fixed_{k}"] + gain for k in range(2, 8)}

    runs = [run for run in STUDIES["nested"].runs(SCALES["small"]) if "trained" in run.varied]
    table = Table("nested", "small", [Row(run.varied, metrics(run.varied), "done") for run in runs])
    found = {finding.claim: finding for finding in STUDIES["nested"].findings(table)}
    of_its_own = "no rate loses more than 0.15 dB to a tokenizer of its own"
    lossless = {name: found[f"{name}: {of_its_own}"] for name in ("half full", "half full, half mixed", "uniform")}
    assert [finding.verdict for finding in lossless.values()] == ["supported", "undecided", "not supported"]
    assert "-0.20 dB at 8" in lossless["half full"].because
    beats = "groups by position, chosen from the latent, beat fixed ones by 0.1 dB or more"
    assert (found[f"uniform: {beats}"].verdict, found[f"geometric: {beats}"].verdict) == ("supported", "undecided")
    paid = {name: found[f"{name}: with groups by position it loses no more either, at equal mean bits"]
            for name in ("uniform", "half full", "geometric")}  # fmt: skip
    assert {name: finding.verdict for name, finding in paid.items()} == {
        "uniform": "undecided", "half full": "supported", "geometric": "not supported"
    }  # fmt: skip
    assert paid["uniform"].because == "0.20 dB at 2, 0.20 dB at 4"
    assert "0.50 dB at 2" in paid["geometric"].because


def test_of_four_groups_every_number_is_trained_alone():
    runs = [run for run in STUDIES["nested"].runs(SCALES["compact-256"]) if "trained" in run.varied]
    assert [run.varied["K"] for run in runs if run.varied["trained"] == "alone"] == [1, 2, 3, 4]
    assert {"psnr_groups_3", "psnr_predicted_3"} < set(STUDIES["nested"].metrics)


@pytest.mark.parametrize("factor", [8, 16])
def test_rivals_spend_the_same_bits(factor):
    """Up to a twentieth; Leech, whose bits come in 17.6, up to a tenth."""
    runs = [run for run in STUDIES["headtohead"].runs(SCALES["small"]) if run.varied["f"] == factor]
    for run in runs:
        if run.varied["method"] == "identity":
            continue
        model = run.config.model
        with torch.device("meta"):
            quantizer = build_quantizer(dim=model.latent_dim, **dataclasses.asdict(model.quantizer))
        tolerance = 0.1 if run.varied["method"] == "leech" else 0.05
        assert quantizer.bits / factor**2 == pytest.approx(run.varied["rate"], rel=tolerance)
        assert run.config.steps == (5000 if run.first is None else 2500)
