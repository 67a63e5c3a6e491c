"""A uniform start of the codebook with groups, at high compression: the break condition of the third mechanism."""

from __future__ import annotations

from gsqtok.evaluation.report.metrics import metric_of
from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study, distance_of, falls, seeds
from gsqtok.studies.table import Table

D = {"smoke": 4, "small": 16, "paper": 16}
CODEBOOK_SIZE = {"smoke": 16, "small": 4096, "paper": 262_144}
FACTORS, GROUPS = (16, 32), (2, 4)


def runs(scale: Scale) -> list[Run]:
    """Both starts, with l2, in 2 and 4 groups at f16 and f32; three seeds."""
    dim, size = D[scale.settings], CODEBOOK_SIZE[scale.settings]
    return [
        Run(
            {"f": f, "G": g, "d": dim // g, "V": size, "init": init, "seed": seed},
            scale.gsq(g, dim // g, size, factor=f, options={} if init == "sphere" else {"init": init}, seed=seed),
        )
        for seed in seeds(scale)
        for f in FACTORS
        for g in GROUPS
        for init in ("uniform", "sphere")
    ]


def findings(table: Table) -> list[Finding]:
    """Usage, PSNR and Fréchet distance of a uniform start beside a spherical one."""
    found = []
    for f in table.values("f"):
        for g in table.values("G", f=f):
            for metric, falling in (("usage", "usage falls"), ("psnr", "images are worse")):
                low, high = (table.value(metric, f=f, G=g, init=init) for init in ("uniform", "sphere"))
                title = metric_of(metric).title
                found.append(
                    Finding(
                        f"with a uniform start {falling} at f{f}, G = {g}",
                        falls(metric, low, high),
                        f"{title} {low} with a uniform, {high} with a spherical start",
                    )
                )
            claim = f"with a uniform start the Fréchet distance rises at f{f}, G = {g}"
            near, far = (table.value(distance_of(table), f=f, G=g, init=init) for init in ("sphere", "uniform"))
            verdict = falls("frechet_distance", near, far)
            found.append(Finding(claim, verdict, f"{far} with a uniform, {near} with a spherical start"))
    return found


STUDY = Study(
    name="start",
    question="Do groups scale to high compression without the spherical start?",
    source="arXiv 2412.02632, its third mechanism, said to break with a uniform start: usage falls, rFID rises",
    runs=runs,
    metrics=(*QUALITY, *CODEBOOK),
    plots=(Plot("usage", "G", "usage", ("init",), panels="f"), Plot("psnr", "G", "psnr", ("init",), panels="f")),
    findings=findings,
    limitations="One V, with the l2 norm throughout. The uniform start is VQGAN's, in a cube of side 2 / V.",
)
