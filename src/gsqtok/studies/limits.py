"""Measured quantization error of trained codebooks against the bounds, towards lossless."""

from __future__ import annotations

from gsqtok.quantizers.sphere import random_code_error, sphere_bound
from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study
from gsqtok.studies.table import Table

D = {"smoke": 4, "small": 16, "paper": 16}
SIZES = {"smoke": (16, 64), "small": (2**4, 2**8, 2**12, 2**16, 2**20), "paper": (2**8, 2**12, 2**16, 2**20)}
DIMS = {"smoke": (2,), "small": (2, 4, 8, 16), "paper": (2, 4, 8, 16)}


def runs(scale: Scale) -> list[Run]:
    """The same channels in groups of d, every V; and no quantization."""
    dim = D[scale.name]
    table = [
        Run({"G": dim // d, "d": d, "V": v}, scale.gsq(dim // d, d, v))
        for d in DIMS[scale.name]
        for v in SIZES[scale.name]
    ]
    return [*table, Run({"G": dim, "d": 1, "V": "none"}, scale.train(dim, {"name": "identity"}))]


def findings(table: Table) -> list[Finding]:
    """Each codebook's error beside the random code's and the bound; and how near lossless the images come."""
    found = []
    for d in table.values("d"):
        inside, total, because = 0, 0, []
        for size in table.values("V", d=d):
            error = None if size == "none" else table.value("chord_error", d=d, V=size)
            if error is None:
                continue
            bound, random = sphere_bound(d, size), random_code_error(d, size)
            total, inside = total + 1, inside + (error.mean < random)
            because.append(f"V = {size:,}: {error.mean:.3g} (bound {bound:.3g}, random {random:.3g})")
        if d > 1:
            verdict = "not tested" if not total else "supported" if inside == total else "not supported"
            claim = f"a trained codebook is closer to its latents than a random code to uniform ones, at d = {d}"
            found.append(Finding(claim, verdict, "; ".join(because)))
    ceiling = table.value("psnr", V="none")
    best = max(
        (row for row in table.rows if "psnr" in row.figures and row.varied["V"] != "none"),
        key=lambda row: row.figures["psnr"],
        default=None,
    )
    claim = "as the quantizer nears lossless, images near those of no quantization (within 0.3 dB)"
    if ceiling is None or best is None:
        return [*found, Finding(claim, "not tested", "")]
    gap = ceiling.mean - best.figures["psnr"]
    where = f"G = {best.varied['G']}, d = {best.varied['d']}, V = {best.varied['V']:,}"
    because = f"{best.figures['psnr']:.2f} dB with {where}; {ceiling.mean:.2f} dB without quantization"
    return [*found, Finding(claim, "supported" if gap < 0.3 else "not supported", because)]


STUDY = Study(
    name="limits",
    question="How close do trained codebooks come to the bounds of what a spherical code can do, and images to those "
    "of no quantization?",
    source="arXiv 2412.02632 leaves the limits of near-lossless reconstruction open; docs/limits.md derives the bounds",
    runs=runs,
    figures=("chord_error", *QUALITY, *CODEBOOK),
    plots=(
        Plot("error", "V", "chord_error", ("d",), log_x=True, log_y=True),
        Plot("psnr", "bits_per_pixel", "psnr", ("d",), log_x=True),
    ),
    findings=findings,
    silent="One seed a setting. The bound is for latents spread evenly over the sphere; those of a trained encoder are "
    "not, so that an error below the bound is no contradiction.",
)
