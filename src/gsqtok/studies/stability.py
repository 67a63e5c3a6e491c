"""Codebooks of a million codewords and more: is their training stable, and does their use hold?"""

from __future__ import annotations

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import (
    CODEBOOK,
    QUALITY,
    Finding,
    Plot,
    Run,
    Study,
    better,
    breaks,
    exceeds,
    judge,
    opposite,
    seeds,
)
from gsqtok.studies.table import Table, Value, known

D = 8
SIZES = {"smoke": (16, 64), "small": (2**13, 2**20, 2**22), "paper": (2**13, 2**20, 2**22)}
_COUNTS = tuple(f"_{k}" for k in range(1, 13))


def runs(scale: Scale) -> list[Run]:
    """One group of 8 channels, from three seeds; twice the scale's steps, so that usage is counted several times."""
    steps = 2 * scale.config.steps
    return [
        Run({"V": v, "seed": seed}, scale.gsq(1, D, v, seed=seed, steps=steps))
        for seed in seeds(scale)
        for v in SIZES[scale.settings]
    ]


def findings(table: Table) -> list[Finding]:
    """Steps skipped, gradients beside those of the smallest codebook, and the perplexity's course, at each larger V."""
    found = []
    smallest, *larger = sorted(table.values("V"))
    for size in larger:
        where = f"at V = {size:,}"
        verdict, some = breaks(table, V=size)
        because = f"{some} had a step that was not finite"
        found.append(Finding(f"no step has to be skipped {where}", opposite(verdict), because))
        peaks, base = (table.value("gradient_peak", V=v) for v in (size, smallest))
        because = f"the largest gradient is {peaks} times the median; {base} times at V = {smallest:,}"
        claim = f"gradients are no more uneven {where} than at V = {smallest:,} (by a half)"
        found.append(Finding(claim, opposite(exceeds(peaks, base, 0.5 * base.mean)), because))
        found.append(_held(table, size))
        psnr, base = (table.value("psnr", V=v) for v in (size, smallest))
        claim = f"images are better {where} than at V = {smallest:,}"
        found.append(Finding(claim, better(psnr, base), f"{psnr} against {base} dB"))
    return found


def _held(table: Table, size: int) -> Finding:
    """Whether the perplexity in training ends near its best."""
    claim = f"usage holds in training at V = {size:,} (perplexity at its end within a tenth of its best)"
    course = known((k, table.value(f"training_perplexity{k}", V=size)) for k in _COUNTS)
    if len(course) < 2:
        return Finding(claim, "not tested")
    values = [value.mean for value in course.values()]
    steps = [table.value(f"training_step{k}", V=size).mean for k in course]
    told = ", ".join(f"{value:,.0f} at step {step:,.0f}" for step, value in zip(steps, values, strict=True))
    return Finding(claim, judge(values[-1] >= 0.9 * max(values), Value(values[-1])), f"perplexity {told}")


STUDY = Study(
    name="stability",
    question="Beyond 512k codewords: are gradients as even, are steps skipped, does usage hold, from every seed?",
    source="arXiv 2412.02632, open question 1: quality, usage and stability at a million codewords and more",
    runs=runs,
    metrics=("gradient_norm", "gradient_peak", "skipped_steps", *QUALITY, *CODEBOOK),
    plots=(
        Plot("perplexity", "training_step", "training_perplexity", ("V",), log_y=True, series=(("", _COUNTS),)),
        Plot("usage", "training_step", "training_usage", ("V",), series=(("", _COUNTS),)),
        Plot("gradients", "V", "gradient_peak", (), log_x=True),
    ),
    findings=findings,
    limitations="One number of channels. Gradients are those of the whole tokenizer before clipping, after the first "
    "tenth of the steps. Usage over time is counted on the training images, over the same number of them each time.",
)
