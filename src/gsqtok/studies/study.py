"""What a study is: a question, a table of runs (what varies, what is held), and what its results say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from gsqtok.studies.scale import Scale
from gsqtok.training.config import TrainConfig
from gsqtok.training.run_folder import as_plain

if TYPE_CHECKING:
    from gsqtok.studies.table import Table, Value

Verdict = Literal["supported", "not supported", "undecided", "not tested"]
# What does not change a run's results:
_IMMATERIAL = ("output", "log_every", "save_every", "validate_every", "keep_checkpoints", "trackers", "cuda_graphs")


@dataclass(frozen=True)
class Run:
    """One line of a study before it is run.

    Attributes:
        varied: what varies, by column, such as {"G": 8, "d": 2, "seed": 0}; unique within its study.
        config: what is trained (without output folder and images), or whose model is timed.
        batch: images a pass, for a run that times the model untrained; None for one that trains.
        codec: measure this codec instead, such as "webp@0.5"; of ``config`` only the images count.
        first: train this one first; ``config`` then trains its decoder alone. Where ``config`` has another quantizer,
            the latents that were learnt without it are quantized by it (`gsqtok.studies.afterwards`).
    """

    varied: dict[str, Any]
    config: TrainConfig
    batch: int | None = None
    codec: str | None = None
    first: TrainConfig | None = None

    @cached_property
    def digest(self) -> str:
        """Of everything that changes the results: runs of two studies with the same one are the same run."""
        plain = _material(self.config)
        what = [plain, self.batch] if self.codec is None else [plain["data"], self.codec]
        if self.first is not None:
            what.append(_material(self.first))
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def _material(config: TrainConfig) -> dict[str, Any]:
    plain = {name: value for name, value in as_plain(config).items() if name not in _IMMATERIAL}
    plain["data"].pop("workers")
    return plain


@dataclass(frozen=True)
class Finding:
    """What the results say about a claim.

    Attributes:
        claim: the claim, with its source.
        verdict: supported, not supported, undecided (the seeds do not tell), or not tested (runs are missing).
        because: the results, in a sentence; means nothing where nothing was tested.
    """

    claim: str
    verdict: Verdict
    because: str = ""


@dataclass(frozen=True)
class Plot:
    """A plot of a study: a metric over what varies, one line for each value of ``lines``, one panel for ``panels``.

    Attributes:
        file: its name, without suffix.
        x: a column of what varies, or a metric such as bits_per_pixel.
        y: a metric.
        lines: columns whose values name a line.
        panels: a column whose values make panels.
        log_x: logarithmic.
        log_y: logarithmic.
        only: columns and the values that a run must have to be shown.
        series: of one run several points: a label for their line, and the endings of the metrics' names that make them.
    """

    file: str
    x: str
    y: str
    lines: tuple[str, ...] = ()
    panels: str | None = None
    log_x: bool = False
    log_y: bool = False
    only: tuple[tuple[str, Any], ...] = ()
    series: tuple[tuple[str, tuple[str, ...]], ...] = (("", ("",)),)


@dataclass(frozen=True)
class Study:
    """A question and the runs that answer it.

    Attributes:
        name: on the command line.
        question: in one or two sentences.
        source: where the question comes from.
        runs: the table at a scale.
        metrics: the columns of the results' table, first the most telling.
        plots: the plots.
        findings: what the results say about each claim.
        limitations: what the study cannot say.
    """

    name: str
    question: str
    source: str
    runs: Callable[[Scale], list[Run]]
    metrics: tuple[str, ...]
    plots: tuple[Plot, ...]
    findings: Callable[[Table], list[Finding]]
    limitations: str


QUALITY = ("bits_per_pixel", "psnr", "ssim", "frechet_distance", "lpips", "rfid")
CODEBOOK = ("usage", "perplexity", "bits_per_pixel_entropy", "bits_per_pixel_prior")


def seeds(scale: Scale, count: int = 3) -> range:
    """Return the seeds of a study that shows error bars; one at the smoke scale."""
    return range(1 if scale.name == "smoke" else count)


def judge(supported: bool, *values: Value) -> Verdict:
    """Give the verdict on a claim that the values support or not; not tested where one of them is missing."""
    if not values or not all(values):
        return "not tested"
    return "supported" if supported else "not supported"


def exceeds(a: Value, b: Value, least: float) -> Verdict:
    """Give the verdict on "a > b": above by at least ``least`` and by twice the spread over seeds, or undecided."""
    if not (a and b):
        return "not tested"
    gap = a.mean - b.mean
    spreads = [2 * value.spread for value in (a, b) if value.seeds > 1]
    if abs(gap) < max(least, *spreads, 0.0):
        return "undecided"
    return judge(gap > 0, a, b)
