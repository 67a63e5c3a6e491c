"""How the codebook starts and how latents are normalised for the lookup (the paper's table 1)."""

from __future__ import annotations

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study, judge
from gsqtok.studies.table import Table

CODEBOOKS = {"smoke": (16,), "small": (8192, 262_144), "paper": (8192, 262_144)}
D = 8


def runs(scale: Scale) -> list[Run]:
    """Every start with every norm, one group."""
    return [
        Run(
            {"init": init, "norm": norm, "V": size},
            scale.gsq(1, D, size, options={"init": init, "norm": norm}, ablation=True),
        )
        for size in CODEBOOKS[scale.name]
        for init in ("uniform", "sphere")
        for norm in ("none", "l1", "l2")
    ]


def findings(table: Table) -> list[Finding]:
    """The paper's break conditions, at each V."""
    found = []
    for size in table.values("V"):
        for claim, broken in (
            ("neither trick: a uniform start without a norm collapses", ("uniform", "none")),
            ("without l2 the usage drops", ("sphere", "none")),
            ("with l1 instead of l2 the usage drops", ("sphere", "l1")),
            ("with a uniform start the usage drops", ("uniform", "l2")),
        ):
            settings = [{"V": size, "init": init, "norm": norm} for init, norm in (broken, ("sphere", "l2"))]
            bad, good = (table.value("usage", **setting) for setting in settings)
            psnr = [table.value("psnr", **setting).mean for setting in settings]
            because = (
                f"usage {bad.mean:.2%} with {', '.join(broken)}; {good.mean:.2%} with sphere, l2; "
                f"PSNR {psnr[0]:.2f} and {psnr[1]:.2f} dB"
            )
            verdict = judge(bad.mean < 0.9 * good.mean, bad, good)
            found.append(Finding(f"{claim} (V = {size:,}, d = {D})", verdict, because))
    return found


STUDY = Study(
    name="codebook",
    question="What do the spherical start of the codebook and the l2 norm of the lookup each do, at one group?",
    source="arXiv 2412.02632, table 1; the first of its three first experiments",
    runs=runs,
    metrics=(*QUALITY, *CODEBOOK),
    plots=(
        Plot("usage", "norm", "usage", ("init",), panels="V"),
        Plot("psnr", "norm", "psnr", ("init",), panels="V"),
    ),
    findings=findings,
    limitations="One seed a setting: a difference of a few tenths of a dB, or of a few percent of usage, is none. "
    "Usage is counted on the validation images: it cannot exceed their number of tokens over V.",
)
