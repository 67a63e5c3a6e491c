"""Every study's table of runs, and what it says of metrics whose verdict is known."""

import dataclasses
import functools
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from gsqtok.discriminators.official_stylegan import OfficialStyleGANDiscriminator
from gsqtok.evaluation.report.plots import png, style
from gsqtok.losses import official
from gsqtok.quantizers import build_quantizer
from gsqtok.studies import STUDIES, plots
from gsqtok.studies.page import page_of, results_table, said
from gsqtok.studies.run import of_all
from gsqtok.studies.scale import SCALES
from gsqtok.studies.study import Plot, all_of, better, exceeds, falls
from gsqtok.studies.table import Row, Table, Value
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.training.adversarial import DiscriminatorObjective

METRICS = {
    **dict.fromkeys(("bits_per_pixel", "bits_per_pixel_entropy", "bits_per_pixel_prior"), 0.5),
    **{
        "psnr": 20.0,
        "ssim": 0.6,
        "usage": 0.9,
        "perplexity": 100.0,
        "frechet_distance_net": 50.0,
        "spherical_error": 1e-3,
    },
    **{"quantizer_ms": 1.0, "quantizer_step_ms": 2.0, "encode_ms": 4.0, "decode_ms": 4.0, "quantizer_share": 0.25},
    **{"skipped_steps": 0.0, "gradient_peak": 2.0, "paper_psnr": 20.0},
    **{f"training_{name}_1": value for name, value in {"step": 200.0, "usage": 0.5, "perplexity": 90.0}.items()},
}


def table_of(name, scale="small", metrics=lambda varied: {}, state="done"):
    """A table of made-up metrics: METRICS, but what ``metrics`` says of a run."""
    rows = [
        Row(run.varied, METRICS | metrics(run.varied) if state == "done" else {}, state)
        for run in STUDIES[name].runs(SCALES[scale])
    ]
    return Table(name, scale, rows)


def verdicts(table):
    return {finding.claim: finding.verdict for finding in STUDIES[table.study].findings(table)}


@functools.cache
def quantizer_of(model):
    """Runs of all studies share a few models."""
    with torch.device("meta"):
        return build_quantizer(dim=model.latent_dim, **dataclasses.asdict(model.quantizer))


@functools.cache
def factor_of(model):
    return ImageTokenizer(model).factor


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", STUDIES)
def test_runs_differ_and_can_be_built(name, scale):
    runs = STUDIES[name].runs(SCALES[scale])
    assert len({tuple(run.varied.items()) for run in runs}) == len(runs)
    for run in runs:
        model = run.config.model
        quantizer = quantizer_of(model)
        if "V" in run.varied and run.varied["V"] != "none":
            assert quantizer.codebook_size == run.varied["V"]
        if "G" in run.varied:
            assert quantizer.tokens_per_position == run.varied["G"]
        if "f" in run.varied:
            assert model.factor == SCALES[scale].factor(run.varied["f"])
        if scale == "smoke":
            assert factor_of(model) == model.factor


def test_a_digest_is_of_what_changes_metrics():
    run = STUDIES["isolate"].runs(SCALES["small"])[0]
    quiet = dataclasses.replace(run.config, log_every=7, data=dataclasses.replace(run.config.data, workers=0))
    assert dataclasses.replace(run, config=quiet).digest == run.digest
    assert dataclasses.replace(run, varied={"another": "name"}).digest == run.digest
    for changed in (
        dataclasses.replace(run.config, seed=1),
        dataclasses.replace(run.config, steps=7),
        dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, train="elsewhere")),
    ):
        assert dataclasses.replace(run, config=changed).digest != run.digest
    assert dataclasses.replace(run, batch=4).digest != run.digest


def test_equal_bits_are_equal():
    for run in STUDIES["groups"].runs(SCALES["small"]):
        if run.varied["held"] != "V":
            bits = run.varied["G"] * (run.varied["V"].bit_length() - 1)
            assert f"{bits} bits" == run.varied["held"]
    for run in STUDIES["isolate"].runs(SCALES["small"]):
        assert run.varied["G"] * (run.varied["V"].bit_length() - 1) == 16


@pytest.mark.parametrize("name", STUDIES)
def test_without_metrics_nothing_is_claimed(name):
    table = table_of(name, state="not run")
    assert set(verdicts(table).values()) == {"not tested"}
    page = page_of(STUDIES[name], table, [])
    assert "not run" in page
    assert not said(STUDIES[name], table_of(name, "smoke"))  # three steps say nothing


@pytest.mark.parametrize("name", STUDIES)
def test_every_plot_is_drawn(name):
    pytest.importorskip("matplotlib")
    table, not_run = table_of(name), table_of(name, state="not run")
    with style():
        for plot in STUDIES[name].plots:
            assert plots.draw(plot, not_run) is None
            assert len(png(plots.draw(plot, table))) > 5000


def points(plot, table):
    """Line, place and mean of each point; None is the place of a level."""
    found = plots.points_of(plot, table)
    rows = found[["line", "x", "mean"]].itertuples(index=False)
    return [(line, None if pd.isna(x) else x, mean) for line, x, mean in rows]


def test_no_quantization_is_a_ceiling_and_no_point():
    rows = [
        Row(
            {"run": "trained", "bits": 18, "method": "gsq"}, {"psnr": 19.0, "bits_per_pixel": 0.3, "usage": 1.0}, "done"
        ),
        Row({"run": "trained", "bits": "none", "method": "identity"}, {"psnr": 20.0, "bits_per_pixel": 8.0}, "done"),
        Row({"run": "timed", "bits": 18, "method": "gsq"}, {"quantizer_ms": 1.0}, "done"),
    ]
    table = Table("methods", "small", rows)
    plot = STUDIES["methods"].plots[0]
    assert points(plot, table) == [("gsq", 0.3, 19.0), ("no quantization", None, 20.0)]


def test_what_has_no_place_is_no_level():
    """What tokens cost is not measured of every tokenizer; without a codebook a setting's rate is a place."""
    of_all = {"psnr": 19.0, "usage": 1.0}
    rows = [
        Row({"f": 8, "rate": 0.28, "method": "gsq"}, of_all | {"bits_per_pixel_prior": 0.2}, "done"),
        Row({"f": 8, "rate": 0.56, "method": "gsq"}, of_all, "done"),
        Row({"f": 8, "rate": 0.56, "method": "identity"}, {"psnr": 27.0}, "done"),
    ]
    table = Table("headtohead", "small", rows)
    psnr, _, _, prior = STUDIES["headtohead"].plots
    assert points(prior, table) == [("gsq", 0.2, 19.0), ("no quantization", None, 27.0)]
    assert points(psnr, table) == [("gsq", 0.28, 19.0), ("gsq", 0.56, 19.0), ("no quantization", 0.56, 27.0)]


def test_no_discriminator_is_a_level_and_no_point():
    metrics = {"psnr": 19.0, "usage": 1.0}
    rows = [Row({"discriminator": "none", "losses": "", "betas": ""}, metrics | {"psnr": 20.0}, "done")]
    rows += [Row({"discriminator": "patch", "losses": loss, "betas": "b"}, metrics, "done") for loss in ("NH", "HH")]
    plot, table = Plot("psnr", "losses", "psnr", ("discriminator", "betas")), Table("discriminator", "small", rows)
    assert points(plot, table) == [("none", None, 20.0), ("patch, b", "NH", 19.0), ("patch, b", "HH", 19.0)]


def test_the_official_discriminator_is_the_paper_s_and_is_asked_for_nan():
    runs = [
        r for r in STUDIES["discriminator"].runs(SCALES["small"]) if r.varied["discriminator"] == "official-stylegan"
    ]
    assert [r.varied["losses"] for r in runs] == ["NH", "NH", "HH", "HH"]
    for run in runs:
        objective = DiscriminatorObjective(run.config.adversarial, components=run.config.official)
        assert isinstance(objective.discriminator, OfficialStyleGANDiscriminator)
        assert objective.losses is official
    claim = "with the official code's StyleGAN discriminator training breaks (NaN)"
    skipped = table_of("discriminator", metrics=lambda v: {"skipped_steps": 3.0 * v["discriminator"].startswith("off")})
    assert verdicts(skipped)[claim] == "supported"
    assert verdicts(skipped)["with StyleGAN2's own discriminator training breaks (NaN)"] == "not supported"
    assert verdicts(table_of("discriminator", metrics=lambda v: {"skipped_steps": 0.0}))[claim] == "not supported"


def test_codebook():
    def metrics(varied):
        worse = (varied["init"], varied["norm"]) == ("uniform", "none")
        return {"usage": 0.03 if worse else 1.0, "psnr": 18.0 if worse else 20.0}

    said_of = verdicts(table_of("codebook", metrics=metrics))
    assert len(said_of) == 18  # usage and images of four claims at two V, and that all codewords are used
    for claim, verdict in said_of.items():
        assert verdict == ("supported" if "neither trick" in claim or "all codewords" in claim else "undecided"), claim
    few = verdicts(table_of("codebook", metrics=lambda v: {"usage": 0.5}))
    assert few["with a spherical start and l2 all codewords are used (V = 8,192)"] == "not supported"


def test_groups():
    said_of = verdicts(table_of("groups", metrics=lambda v: {"psnr": 20 + v["G"] * (v["held"] == "V") - v["f"] / 8}))
    assert said_of["the most groups give better images than the fewest at f8 and the same V"] == "supported"
    assert said_of["the most groups give better images than the fewest at f8 and the same 32 bits"] == "undecided"
    assert said_of["at G = 1 quality stalls as f grows"] == "supported"
    fewer = table_of("groups", metrics=lambda v: {"psnr": 20 - v["G"] / 8})
    assert verdicts(fewer)["the most groups give better images than the fewest at f8 and the same 32 bits"] == (
        "not supported"
    )


def factor_table(mended):
    """f costs a dB at equal bits for each doubling, and two where the groups stay: four times mend all or nothing."""

    def metrics(varied):
        doublings = varied["f"].bit_length() - 4
        bits = varied["G"] * 12 / varied["f"] ** 2
        psnr = 20 - doublings + (math.log2(bits) if mended else 0)
        return {"bits_per_pixel": bits, "psnr": psnr}

    return table_of("factor", metrics=metrics)


def test_factor():
    cost, part = (
        "f16 costs quality beside f8 at equal bits",
        "four times the groups, at equal bits, make up for a part ",
    )
    for mended in (True, False):
        said_of = verdicts(factor_table(mended))
        assert said_of[cost] == "supported"
        more = "more latent channels, in groups of the same d, give better images at f8"
        assert said_of[more] == ("supported" if mended else "undecided")
        assert said_of[f"{part}of what f16 loses to f8"] == ("supported" if mended else "undecided")
    because = {f.claim: f.because for f in STUDIES["factor"].findings(factor_table(True))}
    # 20 + log2(24/64) at f8, two doublings of the bits and one dB below at f16, of which two dB are won back
    assert "67% of the loss" in because[f"{part}of what f16 loses to f8"]
    free = table_of("factor", metrics=lambda v: {"bits_per_pixel": v["G"] * 12 / v["f"] ** 2, "psnr": 20 + v["f"]})
    assert verdicts(free)[cost] == "not supported"


def test_vocabulary():
    def quality(varied):
        return {"psnr": 20 + (varied["V"].bit_length() / 10 if varied["d"] > 4 else 0)}

    said_of = verdicts(table_of("vocabulary", metrics=quality))
    assert said_of == {
        "the largest codebook gives better images than the smallest at d = 4": "undecided",
        "the largest codebook gives better images than the smallest at d = 8": "supported",
        "the largest codebook gives better images than the smallest at d = 16": "supported",
        "at one group and the same V, 16 channels give worse images than 8": "undecided",
    }


def test_precision():
    def metrics(varied):
        low_precision = varied["search"] == "bf16" and varied["d"] <= 2
        return {
            "usage": 0.01 if low_precision else 0.9,
            "psnr": 20 + 0.01 * varied["seed"] - (0.5 if low_precision else 0),
        }

    said_of = verdicts(table_of("precision", metrics=metrics))
    assert said_of["rounding to bf16 makes the usage fall at d = 2, V = 65,536"] == "supported"
    assert said_of["rounding to bf16 makes the usage fall at d = 8, V = 65,536"] == "not supported"
    assert said_of["the exact search gives better images than bf16 at d = 2, V = 1,024"] == "supported"
    assert (
        said_of["the exact search gives better images than bf16 at d = 4, V = 65,536"] == "not supported"
    )  # a gap of 0.05 dB is excluded


@pytest.mark.parametrize(
    ("psnr", "spread", "verdict"),
    [(21, 0.0, "supported"), (20.05, 0.1, "undecided"), (20.05, 0.0, "not supported"), (19, 0.1, "not supported")],
)
def test_methods(psnr, spread, verdict):
    def metrics(varied):
        ours = varied["method"] == "gsq"
        time = {"quantizer_step_ms": 2.0 if ours and varied["bits"] != 64 else 1.9}
        return time | {"psnr": (psnr if ours else 20.0) + spread * varied.get("seed", 0)}

    said_of = verdicts(table_of("methods", metrics=metrics))
    step = "a training step of GSQ's quantizer takes no longer than those of rvq, fsq, lfq at"
    assert {bits: said_of[f"{step} {bits} bits"] for bits in (18, 64)} == {18: "supported", 64: "supported"}
    slow = verdicts(
        table_of("methods", metrics=lambda v: {"psnr": 20.0, "quantizer_step_ms": 1 + (v["method"] == "gsq")})
    )
    assert slow[f"{step} 18 bits"] == "not supported"
    for bits in (18, 36, 64):
        assert said_of[f"GSQ gives better images than lfq at {bits} bits a position"] == verdict
        assert said_of[f"GSQ gives the best images at {bits} bits a position"] == verdict
        assert said_of[f"GSQ gives better images than fsq at {bits} bits a position"] == verdict


def test_isolate():
    said_of = verdicts(table_of("isolate", metrics=lambda v: {"psnr": 20 + (v["init"] == "sphere") - (v["G"] > 1)}))
    assert said_of["the spherical start alone helps over a uniform start, no norm, one group"] == "supported"
    assert said_of["the l2 norm alone helps over a uniform start, no norm, one group"] == "undecided"
    assert said_of["decomposition into 4 groups alone helps over a uniform start, no norm, one group"] == (
        "not supported"
    )


def test_latency():
    slow = table_of("latency", metrics=lambda v: {"quantizer_ms": 3.0 if v["quantizer"] == "gsq" else 1.0})
    assert set(verdicts(slow).values()) == {"not supported"}
    assert set(verdicts(table_of("latency")).values()) == {"supported"}


def test_discriminator():
    def metrics(varied):
        near = varied["discriminator"] == "projected" and varied["losses"] == "NH"
        return {"frechet_distance_net": 20.0 if near else 50.0}

    table = table_of("discriminator", metrics=metrics)
    said_of = verdicts(table)
    worse = "a non-saturating generator loss is better than hinge beside a hinge discriminator, in features"
    assert said_of[worse] == "undecided"  # better for one of three
    assert said_of["a projected discriminator brings reconstructions closer in features"] == "supported"
    assert said_of["a patch discriminator brings reconstructions closer in features"] == "undecided"
    assert said_of["with StyleGAN2's own discriminator training breaks (NaN)"] == "not supported"
    broken = [
        Row(row.varied, {}, "diverged", "20 steps in a row") if row.varied["discriminator"] == "stylegan" else row
        for row in table.rows
    ]
    table = Table("discriminator", "small", broken)
    assert verdicts(table)["with StyleGAN2's own discriminator training breaks (NaN)"] == "supported"
    assert "diverged: 20 steps in a row" in page_of(STUDIES["discriminator"], table, [])


def test_limits():
    def metrics(varied):
        return {"spherical_error": 0.0, "psnr": 24.0 if varied["V"] in ("none", 2**20) else 20.0}

    said_of = verdicts(table_of("limits", metrics=metrics))
    assert set(said_of.values()) == {"supported"}
    said_of = verdicts(table_of("limits", metrics=lambda v: {"spherical_error": 1.99, "psnr": 20 + (v["V"] == "none")}))
    assert set(said_of.values()) == {"not supported"}


def test_exceeds():
    assert exceeds(Value(21), Value(20), 0.3) == "supported"
    assert exceeds(Value(20), Value(21), 0.3) == "not supported"
    assert exceeds(Value(20.2), Value(20), 0.3) == "undecided"
    assert exceeds(Value(21, 0.6, 3), Value(20, 0.1, 3), 0.3) == "undecided"  # within twice the spread
    assert exceeds(Value(21, 0.6, 3), Value(20), 0.3) == "undecided"
    assert exceeds(Value(math.nan, seeds=0), Value(20), 0.3) == "not tested"
    # three seeds may say that there is no such gap; one seed cannot
    assert exceeds(Value(20.05, 0.05, 3), Value(20, 0.05, 3), 0.3) == "not supported"
    assert exceeds(Value(20.05, 0.05, 3), Value(20), 0.3) == "undecided"
    assert exceeds(Value(20.25, 0.05, 3), Value(20, 0.05, 3), 0.3) == "undecided"


def test_better():
    assert better(Value(20.2, 0.05, 3), Value(20, 0.05, 3)) == "supported"
    assert better(Value(20.2, 0.05, 3), Value(20)) == "undecided"  # what one seed may do
    assert better(Value(20.4, 0.05, 3), Value(20)) == "supported"


def test_beyond_what_a_seed_does():
    assert falls("psnr", Value(19.6), Value(20)) == "supported"
    assert falls("psnr", Value(19.8), Value(20)) == "undecided"
    assert falls("usage", Value(0.3), Value(0.5)) == "supported"
    assert falls("usage", Value(0.4), Value(0.5)) == "undecided"
    assert falls("frechet_distance", Value(60), Value(50)) == "not supported"


def test_a_claim_of_several_parts_falls_with_one():
    assert all_of(["supported", "supported"]) == "supported"
    assert all_of(["supported", "undecided"]) == "undecided"
    assert all_of(["undecided", "not supported"]) == "not supported"
    assert all_of([]) == "not tested"


def test_start():
    def metrics(varied):
        worse = varied["init"] == "uniform" and varied["f"] == 32
        return {"usage": 0.1 if worse else 0.9, "psnr": 20.0, "frechet_distance_net": 90.0 if worse else 50.0}

    said_of = verdicts(table_of("start", metrics=metrics))
    assert said_of["with a uniform start usage falls at f32, G = 4"] == "supported"
    assert said_of["with a uniform start images are worse at f32, G = 4"] == "not supported"
    assert said_of["with a uniform start the Fréchet distance rises at f32, G = 4"] == "supported"
    assert said_of["with a uniform start usage falls at f16, G = 2"] == "not supported"


def test_stability():
    def metrics(varied):
        large = varied["V"] == 2**22
        course = {f"training_perplexity_{k}": 1000.0 - 300 * k * large for k in (1, 2, 3)}
        steps = {f"training_step_{k}": 200.0 * k for k in (1, 2, 3)}
        return course | steps | {"gradient_peak": 9.0 if large else 3.0, "skipped_steps": 1.0 * large}

    said_of = verdicts(table_of("stability", metrics=metrics))
    for size, verdict in ((2**20, "supported"), (2**22, "not supported")):
        assert said_of[f"no step has to be skipped at V = {size:,}"] == verdict
        assert said_of[f"gradients are no more uneven at V = {size:,} than at V = 8,192 (by a half)"] == verdict
        assert said_of[
            f"usage holds in training at V = {size:,} (perplexity at its end within a tenth of its best)"
        ] == (verdict)
        assert said_of[f"images are better at V = {size:,} than at V = 8,192"] == "not supported"


def test_what_helps_a_training():
    gains = {"none": 0.0, "AdamW at 0.0003": -3.0, "larger decoder": 0.4}
    runs = STUDIES["recipe"].runs(SCALES["compact-256"])
    rows = [Row(run.varied, {"psnr": 30 + gains.get(run.varied["change"], 0.02) + 0.03 * run.varied["seed"]}, "done")
            for run in runs]  # fmt: skip
    said_of = verdicts(Table("recipe", "compact-256", rows))
    assert said_of["larger decoder: better images"] == "supported"
    assert said_of["AdamW at 0.0003: better images"] == "not supported"
    assert said_of["no warm-up: better images"] == "undecided"
    for run in runs:  # what a change does not say stays as it is: bits and steps
        with torch.device("meta"):
            assert run.config.model.build().quantizer.bits == 64
        assert run.config.steps == SCALES["compact-256"].config.steps


def scaling_table(metrics):
    rows = [
        Row(run.varied, METRICS | run.published | metrics(run.varied), "done")
        for run in STUDIES["scaling"].runs(SCALES["medium"])
    ]
    return Table("scaling", "medium", rows)


def test_scaling():
    def metrics(varied):
        if "codec" in varied:
            return {"psnr": 22.0 if varied["codec"] == "webp" else 40.0, "bits_per_pixel": varied["rate"]}
        f, g, size = varied["f"], varied["G"], varied["V"]
        fewer = f == 8 and g == 4  # groups in the wrong order
        far = {"frechet_distance_net": 30.0 if varied["discriminator"] == "projected" and f == 8 else 50.0}
        usage = {"usage": 0.4 if (f, g) == (16, 8) else 0.5 if f == 32 and g > 2 else 1.0, "usage_if_even": 1.0}
        if (f, g) == (32, 8):  # so few tokens that even ones would leave codewords out
            usage["usage_if_even"] = 0.6
        bits = {"bits_per_pixel": g * (size.bit_length() - 1) / f**2}
        return far | usage | bits | {"psnr": 35.0 if f == 8 and g == 16 else 24 + g - 4 * fewer - 10 * (f == 32)}

    table = scaling_table(metrics)
    said_of = verdicts(table)
    assert said_of["PSNR at f8 orders the numbers of groups as in the paper"] == "not supported"
    assert said_of["PSNR at f32 orders the numbers of groups as in the paper"] == "supported"
    # the paper has 16 groups 0.08 dB below 8 at f16, which is no order
    assert said_of["PSNR at f16 orders the numbers of groups as in the paper"] == "supported"
    assert said_of["usage falls at f16, G = 8, as in the paper"] == "supported"
    assert said_of["usage falls at f16, G = 4, as in the paper"] == "not supported"
    assert said_of["usage falls at f32, G = 8, as in the paper"] == "undecided"  # 0.83 of an even use, theirs 0.59
    assert said_of["usage falls at f32, G = 16, as in the paper"] == "supported"
    assert verdicts(scaling_table(lambda v: {}))["usage falls at f32, G = 16, as in the paper"] == "not tested"
    assert said_of["near lossless: 34.61 dB at f8, D = 64, G = 16"] == "supported"
    assert said_of["a discriminator brings f8, G = 4 closer in features"] == "supported"
    assert said_of["a discriminator brings f16, G = 8 closer in features"] == "undecided"
    assert said_of["tokens keep more of an image than avif at equal bits, in PSNR"] == "not supported"
    assert (
        verdicts(scaling_table(lambda v: {"psnr": 30.0}))["near lossless: 34.61 dB at f8, D = 64, G = 16"]
        == "undecided"
    )
    page = page_of(STUDIES["scaling"], table, [])
    assert "PSNR, dB (paper)" in page
    assert "| 28.02 |" in page


def test_the_papers_rows_are_the_papers():
    trained = [run for run in STUDIES["scaling"].runs(SCALES["paper"]) if run.codec is None]
    assert [(r.varied["f"], r.varied["G"]) for r in trained if r.config.adversarial.discriminator == "none"] == [
        *((32, g) for g in (2, 8, 16)), *((16, g) for g in (1, 2, 4, 8, 16)), *((8, g) for g in (1, 2, 4, 16))
    ]  # fmt: skip
    near = next(r for r in trained if (r.varied["f"], r.varied["G"]) == (8, 16))
    assert (near.varied["d"], near.varied["V"], near.published["paper_psnr"]) == (4, 8192, 34.61)


def test_means_over_seeds_and_their_spread():
    rows = [Row({"d": d, "seed": s}, {"psnr": 20.0 + d + s}, "done") for d in (1, 2) for s in (0, 1, 2)]
    table = Table("precision", "small", [*rows, Row({"d": 2, "seed": 3}, {}, "failed", "why")])
    assert table.value("psnr", d=1) == Value(22.0, 1.0, 3)
    alone = table.value("psnr", d=1, seed=0)
    assert (alone.mean, alone.seeds, str(alone)) == (21.0, 1, "21")
    assert math.isnan(alone.spread)
    assert not table.value("psnr", d=3)
    assert not table.value("ssim", d=1)
    assert table.settings() == [{"d": 1}, {"d": 2}]
    assert "| 1 | 22.00 ± 1.00 | 3 |" in results_table(STUDIES["precision"], table)


def test_a_study_that_went_on_elsewhere_names_both_devices():
    first = {"device": "H100", "torch": "2.10", "date": "2026-11-25T23:00:00+00:00"}
    second = {"device": "H200", "torch": "2.11", "date": "2026-11-26T01:00:00+00:00"}
    table = Table("isolate", "small", [Row({"V": 4}, {"psnr": 20.0}, "done")], {}, of_all([second, first, second]))
    assert "H100 and H200, torch 2.11, 2026-11-25 to 2026-11-26." in page_of(STUDIES["isolate"], table, [])
    table.environment = of_all([second])
    assert "H200, torch 2.11, 2026-11-26." in page_of(STUDIES["isolate"], table, [])
    assert of_all([]) == {}


def test_metrics_of_a_network_have_columns():
    metrics = {"psnr": 20.0, "psnr_pooled": 19.0, "frechet_distance_net": 50.0, "lpips_vgg": 0.1}
    head = results_table(STUDIES["isolate"], Table("isolate", "small", [Row({"V": 4}, metrics, "done")])).splitlines()[
        0
    ]
    assert head == "| V | PSNR, dB | Fréchet distance net | LPIPS vgg |"  # and no pooled PSNR


def test_results_on_disk(tmp_path):
    rows = [Row({"V": 4}, {"psnr": 20.0, "ssim": float("nan")}, "done", digest="abc"), Row({"V": 8}, {}, "failed", "x")]
    table = Table("isolate", "small", rows, {"command": "gsqtok study isolate"}, {"torch": "2"})
    table.save(tmp_path / "results.json")
    again = Table.load(tmp_path / "results.json")
    assert again.rows[0].metrics == {"psnr": 20.0, "ssim": None}  # JSON has no NaN
    assert again.rows[1] == rows[1]
    assert (again.setting, again.environment) == (table.setting, table.environment)
    assert not again.value("ssim")
    for content in ("nothing", "[]", "{}"):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ValueError, match=r"other\.json"):
            Table.load(tmp_path / "other.json")


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].glob("docs/studies/*/results.json")), ids=str)
def test_published_results_are_read_and_say_what_their_page_says(file):
    table = Table.load(file)
    page = file.with_name("README.md").read_text("utf-8")
    plots_of = [f"{plot.file}.png" for plot in STUDIES[table.study].plots]
    drawn = [name for name in (*plots_of, "examples.jpg") if file.with_name(name).exists()]
    assert page_of(STUDIES[table.study], table, drawn) == page
