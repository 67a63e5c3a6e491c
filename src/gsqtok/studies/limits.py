"""Measured quantization error of trained codebooks against the bounds, towards lossless."""

from __future__ import annotations

from gsqtok.quantizers.sphere import random_code_error, sphere_bound
from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study, Verdict, judge
from gsqtok.studies.table import Table

D = {"smoke": 4, "small": 16, "paper": 16}
SIZES = {"smoke": (16, 64), "small": (2**4, 2**8, 2**12, 2**16, 2**20), "paper": (2**8, 2**12, 2**16, 2**20)}
DIMS = {"smoke": (2,), "small": (2, 4, 8, 16), "paper": (2, 4, 8, 16)}


def runs(scale: Scale) -> list[Run]:
    """The same channels in groups of d, every V; and no quantization."""
    dim = D[scale.settings]
    table = [
        Run({"G": dim // d, "d": d, "V": v}, scale.gsq(dim // d, d, v))
        for d in DIMS[scale.settings]
        for v in SIZES[scale.settings]
    ]
    return [*table, Run({"G": dim, "d": 1, "V": "none"}, scale.train(dim, {"name": "identity"}))]


def findings(table: Table) -> list[Finding]:
    """Each codebook's error beside the random code's and the bound; and how near lossless the images come."""
    found = []
    for d in table.values("d"):
        if d == 1:
            continue
        inside, because = [], []
        for size in table.values("V", d=d):
            if error := table.value("spherical_error", d=d, V=size):
                bound, random = sphere_bound(d, size), random_code_error(d, size)
                inside.append(error.mean < random)
                because.append(f"V = {size:,}: {error.mean:.3g} (bound {bound:.3g}, random {random:.3g})")
        claim = f"a trained codebook is closer to its latents than a random code to uniform ones, at d = {d}"
        verdict: Verdict = "not tested" if not inside else "supported" if all(inside) else "not supported"
        found.append(Finding(claim, verdict, "; ".join(because)))
    ceiling = table.value("psnr", V="none")
    quantized = [row for row in table.rows if "psnr" in row.metrics and row.varied["V"] != "none"]
    claim = "as the quantizer nears lossless, images near those of no quantization (within 0.3 dB)"
    if not ceiling or not quantized:
        return [*found, Finding(claim, "not tested")]
    best = max(quantized, key=lambda row: row.metrics["psnr"])
    psnr, where = best.metrics["psnr"], f"G = {best.varied['G']}, d = {best.varied['d']}, V = {best.varied['V']:,}"
    result = f"{psnr:.2f} dB with {where}; {ceiling.mean:.2f} dB without quantization"
    return [*found, Finding(claim, judge(ceiling.mean - psnr < 0.3, ceiling), result)]


STUDY = Study(
    name="limits",
    question="How close do trained codebooks come to the bounds of what a spherical code can do, and images to those "
    "of no quantization?",
    source="arXiv 2412.02632 leaves the limits of near-lossless reconstruction open; docs/limits.md derives the bounds",
    runs=runs,
    metrics=("spherical_error", *QUALITY, *CODEBOOK),
    plots=(
        Plot("error", "V", "spherical_error", ("d",), log_x=True, log_y=True),
        Plot("psnr", "bits_per_pixel", "psnr", ("d",), log_x=True),
    ),
    findings=findings,
    limitations="One seed a setting. The bound is for latents spread evenly over the sphere; those of a trained "
    "encoder are not, so that an error below the bound is no contradiction.",
)
