"""How the codebook starts and how latents are normalised for the lookup (the paper's table 1)."""

from __future__ import annotations

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study
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
        for claim, kept, broken in (
            ("neither trick: a uniform start without a norm collapses", ("sphere", "l2"), ("uniform", "none")),
            ("without l2 the usage drops", ("sphere", "l2"), ("sphere", "none")),
            ("with l1 instead of l2 the usage drops", ("sphere", "l2"), ("sphere", "l1")),
            ("with a uniform start the usage drops", ("sphere", "l2"), ("uniform", "l2")),
        ):
            good = table.value("usage", V=size, init=kept[0], norm=kept[1])
            bad = table.value("usage", V=size, init=broken[0], norm=broken[1])
            verdict, because = "not tested", ""
            if good is not None and bad is not None:
                verdict = "supported" if bad.mean < 0.9 * good.mean else "not supported"
                psnr = [table.value("psnr", V=size, init=init, norm=norm) for init, norm in (broken, kept)]
                because = (
                    f"usage {bad.mean:.2%} with {broken[0]}, {broken[1]}; {good.mean:.2%} with sphere, l2; "
                    f"PSNR {psnr[0].mean:.2f} and {psnr[1].mean:.2f} dB"
                )
            found.append(Finding(f"{claim} (V = {size:,}, d = {D})", verdict, because))
    return found


STUDY = Study(
    name="codebook",
    question="What do the spherical start of the codebook and the l2 norm of the lookup each do, at one group?",
    source="arXiv 2412.02632, table 1; the first of its three first experiments",
    runs=runs,
    figures=(*QUALITY, *CODEBOOK),
    plots=(
        Plot("usage", "norm", "usage", ("init",), panels="V"),
        Plot("psnr", "norm", "psnr", ("init",), panels="V"),
    ),
    findings=findings,
    silent="One seed a setting: a difference of a few tenths of a dB, or of a few percent of usage, is none. Usage is "
    "counted on the validation images: it cannot exceed their number of tokens over V.",
)
