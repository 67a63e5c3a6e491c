"""What metrics are called, how they are written, and which way is better."""

from __future__ import annotations

import math
from typing import NamedTuple

from gsqtok.io import printable


class Metric(NamedTuple):
    """How a metric is shown. ``better`` is 1 where more is better, -1 where less is, 0 where it is no judgement."""

    title: str
    format: str = ".4g"
    better: int = 0


METRICS = {
    "bits_per_pixel": Metric("bits/px", ".3f"),
    "bits_per_pixel_entropy": Metric("bits/px, entropy", ".3f"),
    "bits_per_pixel_prior": Metric("bits/px, prior", ".3f"),
    "rate": Metric("bits/px, about", ".2f"),
    "psnr": Metric("PSNR, dB", ".2f", 1),
    "ssim": Metric("SSIM", ".3f", 1),
    "ms_ssim": Metric("MS-SSIM", ".3f", 1),
    "lpips": Metric("LPIPS", ".3f", -1),
    "dists": Metric("DISTS", ".3f", -1),
    "feature_distance": Metric("feature distance", ".3f", -1),
    "rfid": Metric("rFID", ".2f", -1),
    "sfid": Metric("sFID", ".2f", -1),
    "pfid": Metric("pFID", ".2f", -1),
    "frechet_distance": Metric("Fréchet distance", ".2f", -1),
    "spatial_frechet_distance": Metric("spatial Fréchet distance", ".2f", -1),
    "perturbed_frechet_distance": Metric("perturbed Fréchet distance", ".2f", -1),
    "inception_score": Metric("Inception Score", ".2f", 1),
    "precision": Metric("precision", ".3f", 1),
    "recall": Metric("recall", ".3f", 1),
    "density": Metric("density", ".3f", 1),
    "coverage": Metric("coverage", ".3f", 1),
    "t_acc": Metric("T-ACC", ".2%", 1),
    "t_ned": Metric("T-NED", ".2%", 1),
    "f_sim": Metric("F-Sim", ".3f", 1),
    "usage": Metric("usage", ".1%"),
    "usage_if_even": Metric("usage if even", ".1%"),
    "perplexity": Metric("perplexity", ",.1f"),
    "parameters": Metric("parameters", ",.0f"),
    "images_per_second": Metric("images/s", ".3g"),
    "encode_images_per_second": Metric("encode, images/s", ".3g"),
    "decode_images_per_second": Metric("decode, images/s", ".3g"),
    "spherical_error": Metric("spherical error", ".3g"),
    "training_memory_gib": Metric("training memory, GiB", ".1f"),
    "training_seconds": Metric("training, s", ".0f"),
    "prior_seconds": Metric("training of the prior, s", ".0f"),
    "skipped_steps": Metric("skipped steps", ".0f"),
    "gradient_norm": Metric("gradient norm", ".3g"),
    "gradient_peak": Metric("largest / median gradient", ".3g"),
    "training_step": Metric("step", ",.0f"),
    "training_usage": Metric("usage (training)", ".1%"),
    "training_perplexity": Metric("perplexity (training)", ",.0f"),
    "quantizer_ms": Metric("quantizer, ms", ".3g"),
    "quantizer_step_ms": Metric("quantizer's training step, ms", ".3g"),
    "quantizer_memory_mib": Metric("quantizer's memory, MiB", ".3g"),
    "encode_ms": Metric("encode, ms", ".3g"),
    "decode_ms": Metric("decode, ms", ".3g"),
    "quantizer_share": Metric("quantizer / encode", ".1%"),
}
"""The metrics whose titles are known, in the order of a table's columns.

A longer name, such as lpips_vgg, goes by the longest of these that it begins with.
"""


def base_of(name: str) -> str | None:
    """Return the known metric that a name begins with; None for one that is not known."""
    return max((base for base in METRICS if f"{name}_".startswith(f"{base}_")), key=len, default=None)


def metric_of(name: str) -> Metric:
    """Return how to show a metric; one that is not known goes by its own name.

    What begins with ``paper_`` is the paper's.
    """
    if name.startswith("paper_"):
        theirs = metric_of(name.removeprefix("paper_"))
        return theirs._replace(title=f"{theirs.title} (paper)")
    base = base_of(name)
    if base is None:
        return Metric(printable(name.replace("_", " ")))
    rest = printable(name[len(base) + 1 :].replace("_", " "))
    return METRICS[base]._replace(title=f"{METRICS[base].title} {rest}".strip())


def text_of(name: str, value: float | None, spread: float | None = None) -> str:
    """Write a metric, with its spread where that is not nothing; a dash where it is not defined."""
    if value is None or not math.isfinite(value):
        return "-"
    form = metric_of(name).format
    around = "" if spread is None or not math.isfinite(spread) else format(spread, form)
    return format(value, form) + (f" ± {around}" if around.strip("%0.,") else "")
