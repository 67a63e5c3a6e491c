"""How the codebook starts and how latents are normalised for the lookup (the paper's table 1)."""

from __future__ import annotations

from gsqtok.evaluation.report.metrics import metric_of, text_of
from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study, falls, opposite
from gsqtok.studies.table import Table, Value

CODEBOOKS = {"smoke": (16,), "small": (8192, 262_144), "paper": (8192, 262_144)}
D = 8


def runs(scale: Scale) -> list[Run]:
    """Every start with every norm, one group."""
    return [
        Run(
            {"init": init, "norm": norm, "V": size},
            scale.gsq(1, D, size, options={"init": init, "norm": norm}, ablation=True),
        )
        for size in CODEBOOKS[scale.settings]
        for init in ("uniform", "sphere")
        for norm in ("none", "l1", "l2")
    ]


def findings(table: Table) -> list[Finding]:
    """The paper's break conditions, at each V."""
    found = []
    for size in table.values("V"):
        for claim, broken in (
            ("neither trick (a uniform start without a norm)", ("uniform", "none")),
            ("without l2", ("sphere", "none")),
            ("with l1 instead of l2", ("sphere", "l1")),
            ("with a uniform start", ("uniform", "l2")),
        ):
            settings = [{"V": size, "init": init, "norm": norm} for init, norm in (broken, ("sphere", "l2"))]
            for metric, falling in (("usage", "usage falls"), ("psnr", "images are worse")):
                bad, good = (table.value(metric, **setting) for setting in settings)
                told = [text_of(metric, value.mean) for value in (bad, good)]
                because = f"{metric_of(metric).title}: {told[0]} ({', '.join(broken)}), {told[1]} (sphere, l2)"
                found.append(Finding(f"{claim}: {falling} (V = {size:,}, d = {D})", falls(metric, bad, good), because))
        usage = table.value("usage", V=size, init="sphere", norm="l2")
        verdict = "supported" if usage.mean >= 0.99 else opposite(falls("usage", usage, Value(1.0)))
        because = f"usage {text_of('usage', usage.mean)}"
        found.append(Finding(f"with a spherical start and l2 all codewords are used (V = {size:,})", verdict, because))
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
