"""Down-sampling 8 to 64 times, with groups and channels adjusted: the whole rate-distortion range."""

from __future__ import annotations

from itertools import pairwise

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study, all_of, better
from gsqtok.studies.table import Table, known

D = 4  # channels of a group
CODEBOOK_SIZE = {"smoke": 16, "small": 4096, "paper": 262_144}
GROUPS: dict[str, dict[int, tuple[int, ...]]] = {
    "smoke": {8: (1,), 16: (4,), 32: (16,), 64: (64,)},
    "small": {8: (1, 2, 4, 8), 16: (2, 4, 8, 16, 32), 32: (8, 16, 32, 64), 64: (32, 64, 128)},
    "paper": {8: (1, 2, 4, 8), 16: (2, 4, 8, 16), 32: (8, 16, 32, 64), 64: (32, 64, 128)},
}


def runs(scale: Scale) -> list[Run]:
    """Groups of 4 channels at every factor, at rates that overlap."""
    size = CODEBOOK_SIZE[scale.settings]
    return [
        Run({"f": f, "G": g, "d": D, "V": size}, scale.gsq(g, D, size, factor=f))
        for f, groups in GROUPS[scale.settings].items()
        for g in groups
    ]


def findings(table: Table) -> list[Finding]:
    """What more groups bring, what each doubling of f costs at equal bits, and what part of it groups make up for."""
    found = []
    for f in table.values("f"):
        psnr = known((g, table.value("psnr", f=f, G=g)) for g in sorted(table.values("G", f=f)))
        claim = f"more latent channels, in groups of the same d, give better images at f{f}"
        if len(psnr) < 2:
            found.append(Finding(claim, "not tested"))
            continue
        told = ", ".join(f"D = {D * g}: {value.mean:.2f}" for g, value in psnr.items())
        verdict = better(psnr[max(psnr)], psnr[min(psnr)])
        found.append(Finding(claim, verdict, f"PSNR, dB: {told}"))
    for f, doubled in pairwise(sorted(table.values("f"))):
        lost, mended, costs, gains = [], [], [], []
        for g in table.values("G", f=f):
            fine, equal = (table.value("psnr", f=at, G=groups) for at, groups in ((f, g), (doubled, 4 * g)))
            if fine and equal:
                lost.append(better(fine, equal))
                bits = table.value("bits_per_pixel", f=f, G=g).mean
                costs.append(f"{bits:.3g} bits/px: {fine.mean:.2f} to {equal.mean:.2f} dB")
            same = table.value("psnr", f=doubled, G=g)
            if fine and equal and same:
                mended.append(better(equal, same))
                share = (equal.mean - same.mean) / (fine.mean - same.mean)
                gains.append(
                    f"G = {g} has {fine.mean:.2f} dB at f{f} and {same.mean:.2f} at f{doubled}, where G = {4 * g} has "
                    f"{equal.mean:.2f}: {share:.0%} of the loss"
                )
        claim = f"f{doubled} costs quality beside f{f} at equal bits"
        found.append(Finding(claim, all_of(lost), "; ".join(costs)))
        claim = f"four times the groups, at equal bits, make up for a part of what f{doubled} loses to f{f}"
        found.append(Finding(claim, all_of(mended), "; ".join(gains)))
    return found


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
