"""Codebooks from a thousand to four million codewords: usage, quality, memory, time."""

from __future__ import annotations

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import CODEBOOK, QUALITY, Finding, Plot, Run, Study, all_of, better, falls
from gsqtok.studies.table import Table, known

DIMS = {"smoke": (4,), "small": (4, 8, 16), "paper": (4, 8, 16)}
SIZES = {
    "smoke": (16, 64),
    "small": (2**10, 2**14, 2**18, 2**20, 2**22),
    "paper": (2**10, 2**13, 2**16, 2**18, 2**20, 2**22),
}


def runs(scale: Scale) -> list[Run]:
    """One group of d channels, every V: trained, and the quantizer's step timed by itself."""
    settings = [(d, size) for d in DIMS[scale.settings] for size in SIZES[scale.settings]]
    trained = [Run({"run": "trained", "d": d, "V": v}, scale.gsq(1, d, v)) for d, v in settings]
    timed = [
        Run({"run": "timed", "d": d, "V": v}, scale.gsq(1, d, v), batch=scale.config.batch_size) for d, v in settings
    ]
    return trained + timed


def findings(table: Table) -> list[Finding]:
    """Whether larger codebooks stay in use and help, for each d."""
    found = []
    for d in table.values("d"):
        setting = {"run": "trained", "d": d}
        psnr = known((v, table.value("psnr", **setting, V=v)) for v in sorted(table.values("V")))
        claim = f"the largest codebook gives better images than the smallest at d = {d}"
        if len(psnr) < 2:
            found.append(Finding(claim, "not tested"))
            continue
        verdict = better(psnr[max(psnr)], psnr[min(psnr)])
        because = "; ".join(
            f"V = {v:,}: {value.mean:.2f} dB, perplexity {table.value('perplexity', **setting, V=v).mean:,.0f}"
            for v, value in psnr.items()
        )
        found.append(Finding(claim, verdict, because))
    few, many = sorted(table.values("d"))[-2:] if len(table.values("d")) > 1 else (0, 0)
    verdicts, told = [], []
    for v in table.values("V"):
        low, high = (table.value("psnr", run="trained", d=d, V=v) for d in (many, few))
        if low and high:
            verdicts.append(falls("psnr", low, high))
            told.append(f"V = {v:,}: {low.mean:.2f} and {high.mean:.2f} dB")
    claim = f"at one group and the same V, {many} channels give worse images than {few}"
    return [*found, Finding(claim, all_of(verdicts), "; ".join(told))]


STUDY = Study(
    name="vocabulary",
    question="What do codebooks of a thousand to four million codewords bring, at 4, 8 and 16 channels, and what do "
    "they cost?",
    source="arXiv 2412.02632, the table of vocabulary and dimension, which ends at 512k and leaves more open",
    runs=runs,
    metrics=(*QUALITY, *CODEBOOK, "training_memory_gib", "quantizer_ms", "quantizer_step_ms", "quantizer_memory_mib"),
    plots=(
        Plot("psnr", "V", "psnr", ("d",), log_x=True, only=(("run", "trained"),)),
        Plot("perplexity", "V", "perplexity", ("d",), log_x=True, log_y=True, only=(("run", "trained"),)),
        Plot("time", "V", "quantizer_step_ms", ("d",), log_x=True, log_y=True, only=(("run", "timed"),)),
    ),
    findings=findings,
    limitations="One seed a setting. The larger a codebook, the fewer steps each codeword has been chosen in: a short "
    "training says little about millions of codewords. Usage on the validation images is at most their "
    "number of tokens over V; the perplexity says more.",
)
