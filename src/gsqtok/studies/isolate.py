"""Spherical start, normalised lookup and decomposition, apart and together, at equal bits."""

from __future__ import annotations

from typing import Any

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study, better
from gsqtok.studies.table import Table

D = {"smoke": 8, "small": 16, "paper": 16}
BITS = {"smoke": 4, "small": 16, "paper": 16}  # a position


def runs(scale: Scale) -> list[Run]:
    """Both starts, with and without l2, one group and several."""
    dim, bits = D[scale.settings], BITS[scale.settings]
    return [
        Run(
            {"init": init, "norm": norm, "G": g, "V": 2 ** (bits // g)},
            scale.gsq(g, dim // g, 2 ** (bits // g), options={"init": init, "norm": norm}),
        )
        for g in (1, 2, 4)
        for norm in ("none", "l2")
        for init in ("uniform", "sphere")
    ]


def findings(table: Table) -> list[Finding]:
    """The gain of each alone over plain vector quantization."""
    plain: dict[str, Any] = {"init": "uniform", "norm": "none", "G": 1}
    found = []
    changes: list[tuple[str, dict[str, Any]]] = [
        ("the spherical start alone helps", {"init": "sphere"}),
        ("the l2 norm alone helps", {"norm": "l2"}),
        ("decomposition into 2 groups alone helps", {"G": 2}),
        ("decomposition into 4 groups alone helps", {"G": 4}),
        ("start and norm together help", {"init": "sphere", "norm": "l2"}),
        ("all three together (4 groups) help", {"init": "sphere", "norm": "l2", "G": 4}),
    ]
    for claim, change in changes:
        settings = (plain, plain | change)
        before, after = (table.value("psnr", **setting) for setting in settings)
        usage = [table.value("usage", **setting).mean for setting in settings]
        because = f"{before} to {after} dB; usage {usage[0]:.2%} to {usage[1]:.2%}"
        found.append(
            Finding(
                f"{claim} over a uniform start, no norm, one group",
                better(after, before),
                because,
            )
        )
    return found


STUDY = Study(
    name="isolate",
    question="Which of GSQ's parts does what at equal bits: the spherical start, the l2 norm, the decomposition?",
    source="arXiv 2412.02632 never takes start and decomposition apart",
    runs=runs,
    metrics=(*QUALITY, *CODEBOOK),
    plots=(
        Plot("psnr", "G", "psnr", ("init", "norm"), log_x=True),
        Plot("usage", "G", "usage", ("init", "norm"), log_x=True),
    ),
    findings=findings,
    limitations="One seed a setting, one number of bits, one training length.",
)
