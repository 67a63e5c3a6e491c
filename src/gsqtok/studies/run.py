"""Running studies: what is done already is not done again; the results are written after every run."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gsqtok.studies.page import write_page
from gsqtok.studies.runner import LOG, Outcome, PlacedRun, run_all
from gsqtok.studies.scale import SCALES, Scale
from gsqtok.studies.study import Run, Study
from gsqtok.studies.table import Row, Table
from gsqtok.training.config import DataConfig
from gsqtok.training.run_folder import as_plain

RESULTS = "results.json"
log = logging.getLogger("gsqtok.studies")
Progress = Callable[[str, "Outcome | None", str, int], Any]


@dataclass(frozen=True)
class Images:
    """Where the images of all runs come from, and where they are kept decoded; see ``DataConfig``."""

    train: str | list[str]
    validation: str | list[str]
    train_split: str | None = None
    validation_split: str | None = None
    cache: str | None = None


def run_studies(
    studies: Sequence[Study],
    scale: str,
    images: Images,
    output: str | Path,
    *,
    devices: Sequence[int | None] = (None,),
    per_device: int = 1,
    steps: int | None = None,
    prior_steps: int | None = None,
    only: Mapping[str, set[str]] | None = None,
    seconds: float | None = None,
    command: str = "",
    progress: Progress = lambda *_: None,
) -> list[Table]:
    """Execute the runs of some studies that are not done yet, and write results, page and plots of each.

    Runs lie in ``output/runs``, the results of a study in ``output/NAME-SCALE``. Runs that two studies have in common
    are done once, and what those results hold already is not done again, even where the runs' folders are gone.

    Args:
        studies: which.
        scale: "smoke", "small", "compact", "compact-256", "medium" or "paper".
        images: of all runs.
        output: a folder; used again, what is there is taken up.
        devices: GPUs by number, None for the CPU.
        per_device: runs that share a device.
        steps: of each training, instead of the scale's.
        prior_steps: of a prior on the tokens of each trained tokenizer, which measures what they cost; None: no prior.
        only: columns, and the values that a run must have in them to be executed; a run without the column has not.
        seconds: after so many no further run begins.
        command: for the record.
        progress: called after each run with its name, its outcome or None and why it failed, and how many are left.

    Returns:
        The tables, in the order of ``studies``.

    Raises:
        FileNotFoundError: a network that measures has no weights here; nothing has been trained then.
        ValueError: no run is left by ``only``, or a number below 1.
    """
    held, output, began = held_at(SCALES[scale], steps), Path(output), time.monotonic()
    if prior_steps is not None and prior_steps < 1:
        raise ValueError(f"prior_steps must be at least 1, got {prior_steps}")
    plans = [(study, [_with(run, images) for run in study.runs(held)]) for study in studies]
    placed = _place(plans, output / "runs", held, prior_steps)
    files = [file for study, _ in plans if (file := output / f"{study.name}-{scale}" / RESULTS).exists()]
    earlier = {file: Table.load(file) for file in files}
    for file, found in earlier.items():
        _keep_others(file, found, placed)
    recorded = _recorded(earlier.values())
    outcomes = {digest: outcome for digest, run in placed.items() if (outcome := run.outcome()) is not None}
    # what is recorded may hold more: the cost of tokens, where it is not asked for now
    outcomes |= {digest: outcome for digest, outcome in recorded.items() if _is_whole(outcome, placed.get(digest))}
    failures: dict[str, str] = {}
    wanted = {run.digest for _, runs in plans for run in runs if _has(run, only or {})}
    if not wanted:
        raise ValueError(f"no run has {', '.join(f'{k}={v}' for k, of in (only or {}).items() for v in sorted(of))}")
    left = [run for digest, run in placed.items() if digest in wanted and digest not in outcomes]
    if trained := [run.run.config.data for run in left if run.run.batch is None]:
        _check_networks(held)
        _decode_once(trained[0])

    def report(run: PlacedRun, outcome: Outcome | None, problem: str) -> None:
        digest = run.run.digest
        if outcome is not None:
            outcomes[digest] = outcome
        else:
            failures[digest] = f"{problem}; {run.folder / LOG} has more"
        for study, runs in plans:
            if digest in (other.digest for other in runs):
                _table(study, runs, held, command, outcomes, failures).save(output / f"{study.name}-{scale}" / RESULTS)
        left.remove(run)
        progress(run.name, outcome, problem, len(left))

    try:
        run_all(
            list(left), devices, per_device, report, lambda: seconds is not None and time.monotonic() - began > seconds
        )
    finally:  # also when stopped: the pages say what is done
        tables = [_table(study, runs, held, command, outcomes, failures) for study, runs in plans]
        for (study, _), table in zip(plans, tables, strict=True):
            table.save(output / f"{study.name}-{scale}" / RESULTS)
            write_page(study, table, output / f"{study.name}-{scale}")
    return tables


def _has(run: Run, only: Mapping[str, set[str]]) -> bool:
    return all(str(run.varied.get(column)) in values for column, values in only.items())


def _recorded(tables: Iterable[Table]) -> dict[str, Outcome]:
    """The outcomes, by digest, that earlier results hold."""
    return {
        row.digest: Outcome(row.state, row.metrics, table.environment, row.message)
        for table in tables
        for row in table.rows
        if row.state in ("done", "diverged")
    }


def _keep_others(file: Path, table: Table, placed: Mapping[str, PlacedRun]) -> None:
    """Copy results of which some are of no run here (other steps, images or options), before they are written over."""
    done = [row.digest for row in table.rows if row.metrics]
    if others := [digest for digest in done if digest not in placed]:
        copy = file.with_name(f"results-{others[0] or 'before'}.json")
        shutil.copyfile(file, copy)
        log.warning(
            "%s: %d of %d results are of other steps, images or options than these; all are kept in %s",
            file, len(others), len(done), copy.name,
        )  # fmt: skip


def _is_whole(recorded: Outcome, run: PlacedRun | None) -> bool:
    """Whether it has what is asked for now: the cost of tokens under this prior may not have been asked for then."""
    if run is None or recorded.state != "done" or run.cost() is None:
        return True
    return recorded.metrics.get("prior_steps") == run.prior_steps


def _place(
    plans: Sequence[tuple[Study, list[Run]]], runs: Path, scale: Scale, prior_steps: int | None
) -> dict[str, PlacedRun]:
    """Each run by its digest, in the folder that an earlier start or another study may have given it."""
    placed: dict[str, PlacedRun] = {}
    for study, planned in plans:
        for run in planned:
            name = "-".join(str(value) for value in run.varied.values())
            slug = re.sub(r"[^a-z0-9.]+", "-", f"{study.name}-{name}".lower())
            folder = next(iter(sorted(runs.glob(f"*-{run.digest}"))), runs / f"{slug}-{run.digest}")
            placed.setdefault(run.digest, PlacedRun(f"{study.name}: {name}", run, folder, scale, prior_steps))
    return placed


def _check_networks(scale: Scale) -> None:
    """Load the networks that measure, once: without their weights every run would train first, and fail then."""
    from gsqtok.evaluation.features import build_features
    from gsqtok.evaluation.perceptual import ImageDistance

    if scale.features is not None:
        build_features(scale.features)
    for name in scale.perceptual:
        ImageDistance(name, download=True)


def _decode_once(data: DataConfig) -> None:
    """Fill the cache of decoded images, if there is to be one: processes that begin together would each do so."""
    from gsqtok.data.workers import processors
    from gsqtok.training.images import decoded_images, training_images

    if data.cache is not None:
        decoded_images(data, training_images(data)[0], processors())


def held_at(scale: Scale, steps: int | None) -> Scale:
    """Return the scale with another number of steps."""
    if steps is None:
        return scale
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    ablations = scale.ablations and replace(scale.ablations, steps=steps)
    return replace(scale, config=replace(scale.config, steps=steps), ablations=ablations)


def _table(
    study: Study, runs: list[Run], scale: Scale, command: str, outcomes: dict[str, Outcome], failures: dict[str, str]
) -> Table:
    """The results of a study as far as they are there."""
    rows = [_row(run, outcomes.get(run.digest), failures.get(run.digest)) for run in runs]
    environments = [outcomes[run.digest].environment for run in runs if run.digest in outcomes]
    return Table(study.name, scale.name, rows, _setting(scale, runs[0], command), of_all(environments))


def _row(run: Run, outcome: Outcome | None, failure: str | None) -> Row:
    if outcome is not None:
        metrics = outcome.metrics | (run.published if outcome.state == "done" else {})
        return Row(run.varied, metrics, outcome.state, outcome.message, run.digest)
    return Row(run.varied, {}, "not run" if failure is None else "failed", failure or "", run.digest)


def _setting(scale: Scale, run: Run, command: str) -> dict[str, Any]:
    config = as_plain(run.config)
    held = {name: value for name, value in config.items() if name not in ("output", "initialize_from", "freeze")}
    return {"summary": scale.summary, "command": command, "features": scale.features, "first_run": held}


def of_all(environments: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the newest run's environment, all devices and the first date: a study may go on elsewhere."""
    if not environments:
        return {}
    by_date = sorted(environments, key=lambda environment: environment["date"])
    devices = dict.fromkeys(device for environment in by_date for device in environment["device"].split(" and "))
    first = min(environment.get("first_date", environment["date"]) for environment in environments)
    return by_date[-1] | {"device": " and ".join(devices), "first_date": first}


def _with(run: Run, images: Images) -> Run:
    data = replace(run.config.data, **asdict(images))
    first = None if run.first is None else replace(run.first, data=data)
    return replace(run, config=replace(run.config, data=data), first=first)
