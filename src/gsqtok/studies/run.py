"""Running studies: what is done already is not done again; the results are written after every run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsqtok.studies.page import write_page
from gsqtok.studies.scale import SCALES, Scale
from gsqtok.studies.schedule import do_all
from gsqtok.studies.study import Run, Study
from gsqtok.studies.table import Row, Table
from gsqtok.studies.work import Job, Outcome
from gsqtok.training.run_folder import as_plain

Progress = Callable[[Job, "Outcome | None", str, int], Any]


@dataclass(frozen=True)
class Images:
    """Where the images of all runs come from; see ``DataConfig``."""

    train: str | list[str]
    validation: str | list[str]
    train_split: str | None = None
    validation_split: str | None = None


def run_studies(
    studies: Sequence[Study],
    scale: str,
    images: Images,
    output: str | Path,
    *,
    devices: Sequence[int | None] = (None,),
    per_device: int = 1,
    steps: int | None = None,
    command: str = "",
    progress: Progress = lambda *_: None,
) -> list[Table]:
    """Do the runs of some studies that are not done yet, and write results, page and plots of each.

    Runs lie in ``output/runs``, the results of a study in ``output/NAME-SCALE``. Runs that two studies have in common
    are done once.

    Args:
        studies: which.
        scale: "smoke", "small" or "paper".
        images: of all runs.
        output: a folder; used again, what is there is taken up.
        devices: GPUs by number, None for the CPU.
        per_device: runs that share a device.
        steps: of each training, instead of the scale's.
        command: for the record.
        progress: called after each run with its job, its outcome or None and why it failed, and how many are left.

    Returns:
        The tables, in the order of ``studies``.

    Raises:
        FileNotFoundError: a network that measures has no weights here; nothing has been trained then.
    """
    output = Path(output)
    held = held_at(SCALES[scale], steps)
    folders: dict[str, Path] = {}
    tables = [_Plan(study, held, images, output, command, folders) for study in studies]
    jobs = {job.folder: job for table in tables for job in table.jobs}
    outcomes = {folder: outcome for folder in jobs if (outcome := Outcome.of(folder)) is not None}
    failures: dict[Path, str] = {}
    left = jobs.keys() - outcomes.keys()
    _check_networks([jobs[folder] for folder in left])

    def report(job: Job, outcome: Outcome | None, problem: str) -> None:
        if outcome is not None:
            outcomes[job.folder] = outcome
        else:
            failures[job.folder] = f"{problem}; {job.folder / 'log.txt'} has more"
        for table in tables:
            if any(other.folder == job.folder for other in table.jobs):
                table.results(outcomes, failures).save(table.folder / "results.json")
        left.discard(job.folder)
        progress(job, outcome, problem, len(left))

    try:
        do_all([job for folder, job in jobs.items() if folder in left], devices, per_device, report)
    finally:  # also when stopped: the pages say what is done
        results = [table.results(outcomes, failures) for table in tables]
        for table, result in zip(tables, results, strict=True):
            result.save(table.folder / "results.json")
            write_page(table.study, result, table.folder)
    return results


def _check_networks(jobs: Sequence[Job]) -> None:
    """Load the networks that measure, once: without their weights every run would train first, and fail then."""
    from gsqtok.evaluation.features import build_features
    from gsqtok.evaluation.perceptual import ImageDistance

    trained = [job for job in jobs if job.batch is None]
    for name in {job.features for job in trained} - {None}:
        build_features(name)
    for name in {name for job in trained for name in job.perceptual}:
        ImageDistance(name, download=True)


def held_at(scale: Scale, steps: int | None) -> Scale:
    """The scale with another number of steps."""
    if steps is None:
        return scale
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return dataclasses.replace(
        scale,
        config=dataclasses.replace(scale.config, steps=steps),
        ablations=dataclasses.replace(scale.ablations, steps=steps),
    )


class _Plan:
    """The jobs of a study, and its results as far as they are there."""

    def __init__(
        self,
        study: Study,
        scale: Scale,
        images: Images,
        output: Path,
        command: str,
        folders: dict[str, Path],
    ) -> None:
        self.study, self.scale, self.command = study, scale, command
        self.folder = output / f"{study.name}-{scale.name}"
        runs = study.runs(scale)
        self.runs = [dataclasses.replace(run, config=_with(run.config, images)) for run in runs]
        self.jobs = [self._job(run, output / "runs", folders) for run in self.runs]

    def _job(self, run: Run, runs: Path, folders: dict[str, Path]) -> Job:
        """The run's job, in the folder that another study may have given it."""
        name = "-".join(str(value) for value in run.varied.values())
        digest = run.digest
        if digest not in folders:
            there = sorted(runs.glob(f"*-{digest}"))
            slug = re.sub(r"[^a-z0-9.]+", "-", f"{self.study.name}-{name}".lower())
            folders[digest] = there[0] if there else runs / f"{slug}-{digest}"
        folder = folders[digest]
        return Job(
            f"{self.study.name}: {name}", folder, run.config, run.batch, self.scale.features, self.scale.perceptual
        )

    def results(self, outcomes: dict[Path, Outcome], failures: dict[Path, str]) -> Table:
        rows, environments = [], []
        for run, job in zip(self.runs, self.jobs, strict=True):
            outcome = outcomes.get(job.folder)
            if outcome is not None:
                rows.append(Row(run.varied, outcome.figures, outcome.state, outcome.message, run.digest))
                environments.append(outcome.environment)
            else:
                state = "failed" if job.folder in failures else "not run"
                rows.append(Row(run.varied, {}, state, failures.get(job.folder, ""), run.digest))
        held = as_plain(self.runs[0].config)
        for name in ("output", "initialize_from", "freeze"):
            held.pop(name)
        setting = {"summary": self.scale.summary, "command": self.command, "features": self.scale.features}
        return Table(self.study.name, self.scale.name, rows, setting | {"first_run": held}, of_all(environments))


def of_all(environments: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest run's environment, with the devices of all and the date of the first: a study may go on elsewhere."""
    if not environments:
        return {}
    by_date = sorted(environments, key=lambda environment: environment["date"])
    devices = dict.fromkeys(environment["device"] for environment in by_date)
    return by_date[-1] | {"device": " and ".join(devices), "first_date": by_date[0]["date"]}


def _with(config: Any, images: Images) -> Any:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **dataclasses.asdict(images)))
