"""Down-sampling 8 to 64 times, with groups and channels adjusted: the whole rate-distortion range."""

from __future__ import annotations

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study, Verdict
from gsqtok.studies.table import Table

D = 4  # channels of a group
CODEBOOK_SIZE = {"smoke": 16, "small": 4096, "paper": 262_144}
GROUPS: dict[str, dict[int, tuple[int, ...]]] = {
    "smoke": {8: (1,), 16: (4,), 32: (16,), 64: (64,)},
    "small": {8: (1, 2, 4, 8), 16: (2, 4, 8, 16, 32), 32: (8, 16, 32, 64), 64: (32, 64, 128)},
    "paper": {8: (1, 2, 4, 8), 16: (2, 4, 8, 16), 32: (8, 16, 32, 64), 64: (32, 64, 128)},
}


def runs(scale: Scale) -> list[Run]:
    """Groups of 4 channels at every factor, at rates that overlap."""
    size = CODEBOOK_SIZE[scale.name]
    return [
        Run({"f": f, "G": g, "d": D, "V": size}, scale.gsq(g, D, size, factor=f))
        for f, groups in GROUPS[scale.name].items()
        for g in groups
    ]


def findings(table: Table) -> list[Finding]:
    """Which factor is best at each rate that several have."""
    rates: dict[float, dict[int, float]] = {}
    for f in table.values("f"):
        for g in table.values("G", f=f):
            bits, psnr = (table.value(name, f=f, G=g) for name in ("bits_per_pixel", "psnr"))
            if bits and psnr:
                rates.setdefault(round(bits.mean, 4), {})[f] = psnr.mean
    shared = {rate: by_factor for rate, by_factor in sorted(rates.items()) if len(by_factor) > 1}
    claim = "higher spatial compression costs quality at equal bits (groups make up for part of it)"
    if not shared:
        return [Finding(claim, "not tested")]
    lost = [by_factor[min(by_factor)] - by_factor[max(by_factor)] for by_factor in shared.values()]
    verdict: Verdict = "supported" if min(lost) > 0.3 else "not supported" if max(lost) < 0.3 else "undecided"
    because = "; ".join(
        f"{rate:g} bits/px: " + ", ".join(f"f{f} {psnr:.2f} dB" for f, psnr in by_factor.items())
        for rate, by_factor in shared.items()
    )
    return [Finding(claim, verdict, because)]


STUDY = Study(
    name="factor",
    question="At equal bits a pixel, how much down-sampling can groups make up for, up to 64 times?",
    source="arXiv 2412.02632, the scaling of f8, f16, f32; f64 is beyond it",
    runs=runs,
    metrics=(*QUALITY, *CODEBOOK),
    plots=(
        Plot("rate-distortion", "bits_per_pixel", "psnr", ("f",), log_x=True),
        Plot("rate-ssim", "bits_per_pixel", "ssim", ("f",), log_x=True),
    ),
    findings=findings,
    limitations="One seed a setting, and networks that differ with f (a level more for each doubling). At 64 px an f64 "
    "grid is a single position.",
)
