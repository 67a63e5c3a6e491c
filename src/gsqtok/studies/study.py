"""What a study is: a question, a table of runs (what varies, what is held), and what its results say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
        published: metrics that others published for this setting, such as ``paper_psnr``; shown beside the run's own.
    """

    varied: dict[str, Any]
    config: TrainConfig
    batch: int | None = None
    codec: str | None = None
    first: TrainConfig | None = None
    published: dict[str, float] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Of everything that changes the results: runs of two studies with the same one are the same run."""
        what: list[Any] = [_material(self.config), self.batch]
        if self.codec is not None:  # nothing is trained for it
            data = _material(self.config)["data"]
            what = [{name: data[name] for name in ("validation", "validation_split", "size")}, self.codec]
        if self.first is not None:
            what.append(_material(self.first))
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def _material(config: TrainConfig) -> dict[str, Any]:
    plain = {name: value for name, value in as_plain(config).items() if name not in _IMMATERIAL}
    for name in ("workers", "cache"):
        plain["data"].pop(name)
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
        only: columns and the values that a run must have to be shown, where it has the column.
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


# What two runs that differ in their seed alone may differ by: twice the standard deviation of a difference, pooled over
# the settings of precision and methods at the small scale that have three seeds (docs/plots/results.py computes it).
# In dB; the others as a share of the metric.
BEYOND_SEEDS = {"psnr": 0.3, "usage": 0.25, "frechet_distance": 0.15, "bits_per_pixel_entropy": 0.045}
LEAST = 0.1  # dB: a smaller gap in PSNR does not count, however many seeds tell it from none


def seeds(scale: Scale, count: int = 3) -> range:
    """Return the seeds of a study that shows error bars; one at the smoke scale."""
    return range(1 if scale.name == "smoke" else count)


def judge(supported: bool, *values: Value) -> Verdict:
    """Give the verdict on a claim that the values support or not; not tested where one of them is missing."""
    if not values or not all(values):
        return "not tested"
    return "supported" if supported else "not supported"


def exceeds(a: Value, b: Value, least: float) -> Verdict:
    """Give the verdict on "a is above b by ``least`` or more".

    Supported, or not supported where it is the other way round, needs a gap of at least ``least`` and of twice the
    spread over seeds. Where the seeds exclude so large a gap, it is not supported either; all else is undecided. One
    seed alone has no spread: give a ``least`` that is beyond what a seed does (``BEYOND_SEEDS``).
    """
    if not (a and b):
        return "not tested"
    gap = a.mean - b.mean
    spreads = [2 * value.spread for value in (a, b) if value.seeds > 1]
    noise = max(spreads, default=0.0)
    if abs(gap) >= max(least, noise):
        return judge(gap > 0, a, b)
    return "not supported" if len(spreads) == 2 and gap + noise < least else "undecided"


def better(a: Value, b: Value) -> Verdict:
    """Give the verdict on "``a`` dB beat ``b``", by ``LEAST`` if each has several seeds, else by what one does."""
    return exceeds(a, b, LEAST if min(a.seeds, b.seeds) > 1 else BEYOND_SEEDS["psnr"])


def falls(metric: str, low: Value, high: Value) -> Verdict:
    """Give the verdict on "``low`` is below ``high`` by more than one seed does" for a metric of ``BEYOND_SEEDS``."""
    least = BEYOND_SEEDS[metric]
    return exceeds(high, low, least if metric == "psnr" else least * abs(high.mean))


def breaks(table: Table, **varied: Any) -> tuple[Verdict, str]:
    """Give the verdict on "such runs diverge or skip steps", and how many do: ``1 of 3 runs``."""
    tried = [row for row in table.rows_of(**varied) if row.state in ("done", "diverged")]
    broken = sum(row.state == "diverged" or row.metrics.get("skipped_steps", 0) > 0 for row in tried)
    verdict: Verdict = "not tested" if not tried else "supported" if broken else "not supported"
    return verdict, f"{broken} of {len(tried)} runs"


def distance_of(table: Table) -> str:
    """Return the name of the Fréchet distance that was measured, rFID before others; where none was, any name."""
    names = {name for row in table.rows for name in row.metrics if name.startswith(("rfid", "frechet_distance"))}
    return "rfid" if "rfid" in names else min(names, default="frechet_distance")


def opposite(verdict: Verdict) -> Verdict:
    """Give the verdict on the contrary."""
    turned: dict[Verdict, Verdict] = {"supported": "not supported", "not supported": "supported"}
    return turned.get(verdict, verdict)


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Give the verdict on a claim of several parts: it stands where all do, and falls with the first that does."""
    worst: tuple[Verdict, ...] = ("not supported", "not tested", "undecided")
    for verdict in worst:
        if verdict in verdicts:
            return verdict
    return "supported" if verdicts else "not tested"
