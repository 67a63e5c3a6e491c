"""Codebooks from a thousand to four million codewords: usage, quality, memory, time."""

from __future__ import annotations

from itertools import pairwise

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study
from gsqtok.studies.table import Table

DIMS = {"smoke": (4,), "small": (4, 8, 16), "paper": (4, 8, 16)}
SIZES = {
    "smoke": (16, 64),
    "small": (2**10, 2**14, 2**18, 2**20, 2**22),
    "paper": (2**10, 2**13, 2**16, 2**18, 2**20, 2**22),
}


def runs(scale: Scale) -> list[Run]:
    """One group of d channels, every V: trained, and the quantizer's step timed by itself."""
    settings = [(d, size) for d in DIMS[scale.name] for size in SIZES[scale.name]]
    trained = [Run({"run": "trained", "d": d, "V": v}, scale.gsq(1, d, v)) for d, v in settings]
    timed = [
        Run({"run": "timed", "d": d, "V": v}, scale.gsq(1, d, v), batch=scale.config.batch_size) for d, v in settings
    ]
    return trained + timed


def findings(table: Table) -> list[Finding]:
    """Whether larger codebooks stay in use and help, for each d."""
    found = []
    for d in table.values("d"):
        points = [
            (v, table.value("psnr", run="trained", d=d, V=v), table.value("perplexity", run="trained", d=d, V=v))
            for v in sorted(table.values("V"))
        ]
        points = [point for point in points if None not in point]
        claim = f"quality rises with V at d = {d}"
        if len(points) < 2:
            found.append(Finding(claim, "not tested", ""))
            continue
        gain = points[-1][1].mean - points[0][1].mean
        steps = [b[1].mean - a[1].mean for a, b in pairwise(points)]
        verdict = "supported" if gain > 0.3 and min(steps) > -0.1 else "not supported" if gain < 0.1 else "undecided"
        because = "; ".join(
            f"V = {v:,}: {psnr.mean:.2f} dB, perplexity {perplexity.mean:,.0f}" for v, psnr, perplexity in points
        )
        found.append(Finding(claim, verdict, because))
    return found


STUDY = Study(
    name="vocabulary",
    question="What do codebooks of a thousand to four million codewords bring, at 4, 8 and 16 channels, and what do "
    "they cost?",
    source="arXiv 2412.02632, the table of vocabulary and dimension, which ends at 512k and leaves more open",
    runs=runs,
    figures=(*QUALITY, *CODEBOOK, "training_memory_gib", "quantizer_ms", "quantizer_step_ms", "quantizer_memory_mib"),
    plots=(
        Plot("psnr", "V", "psnr", ("d",), log_x=True, only=(("run", "trained"),)),
        Plot("perplexity", "V", "perplexity", ("d",), log_x=True, log_y=True, only=(("run", "trained"),)),
        Plot("time", "V", "quantizer_step_ms", ("d",), log_x=True, log_y=True, only=(("run", "timed"),)),
    ),
    findings=findings,
    silent="One seed a setting. The larger a codebook, the fewer steps each codeword has been chosen in: a short "
    "training says little about millions of codewords. Usage on the validation images is at most their number of "
    "tokens over V; the perplexity says more.",
)
