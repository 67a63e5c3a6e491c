"""The folder of a training run: who owns it, what it holds, and checkpoints that a crash cannot spoil.

runs/mine/
    config.yaml      the resolved configuration
    data.json        the digests of the images, so that other images are noticed
    checkpoints/     step-00001000/ ...: everything needed to go on
    tokenizer/       the averaged weights, newest: what ImageTokenizer.from_pretrained("runs/mine") loads
    prior/           instead, in a run that trains a prior over tokens
    samples/         step-00000000.png, ...: images above their reconstructions
    metrics.jsonl    one JSON object a log line
    tensorboard/     the same, as curves
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import get_int_from_env

from gsqtok.distributed import LOCK, alone
from gsqtok.io import atomic_write, one_line, read_json, sha256_of
from gsqtok.training.config import RESUMABLE

DIGESTS = "sha256.json"  # in a checkpoint: of each of its files
Reports = Callable[[str | None], list[str | None]]


class RunFolderError(ValueError):
    """The folder cannot be used for this run; the message says why and what to do."""


class RunFolder:
    """Paths of a run, and the writing of its checkpoints."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.tokenizer = self.path / "tokenizer"
        self.prior = self.path / "prior"
        self.samples = self.path / "samples"
        self.metrics_file = self.path / "metrics.jsonl"
        self.data_file = self.path / "data.json"
        self.tensorboard = self.path / "tensorboard"

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, in order."""
        return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]

    def held(self, command: str) -> AbstractContextManager[None]:
        """Hold the folder for this rank of a run, before anything in it is read or written.

        Raises:
            ValueError: another run holds it.
            RunFolderError: it is a file.
        """
        self._check_folder()
        rank = get_int_from_env(["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"], 0)  # as Accelerate finds it, but sooner
        return alone(self.path, rank, command)

    def check_free(self, resume: bool) -> None:
        """Refuse a folder that holds something else; this needs no configuration.

        Raises:
            RunFolderError: it is a file, holds a run and ``resume`` is off, or holds other files.
        """
        self._check_folder()
        if self.config_file.exists():
            if resume:
                return
            latest = self.latest()
            reached = f" (at step {step_of(latest)})" if latest else ""
            raise RunFolderError(
                f"{self.path} already holds a run{reached}; go on with --resume, or choose another --output"
            )
        if self.path.exists() and any(not LOCK.fullmatch(file.name) for file in self.path.iterdir()):
            raise RunFolderError(f"{self.path} holds other files; choose an empty folder for --output")

    def _check_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; --output names a folder")

    def check(self, config: Any, resume: bool, resumable: frozenset[str] = RESUMABLE) -> None:
        """Refuse what ``check_free`` does, and a run that this configuration would not continue.

        Args:
            config: the run's dataclass.
            resume: go on with the run in the folder.
            resumable: dotted names of the options that may differ from the run's.

        Raises:
            RunFolderError: as ``check_free``, or the run was started with options that change the result; the first
                such option is named with both values.
        """
        self.check_free(resume)
        if not self.config_file.exists():
            return
        try:
            before = flatten(yaml.safe_load(self.config_file.read_text()))
        except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as error:
            raise RunFolderError(f"{self.config_file} cannot be read: {one_line(error)[:200]}") from error
        now = flatten(as_plain(config))
        defaults = {k: v for k, v in flatten(as_plain(type(config)())).items() if not k.startswith("model.")}
        before = defaults | before  # options that are newer than the run
        for key in sorted(before.keys() | now.keys()):
            if key not in resumable and before.get(key) != now.get(key):
                raise RunFolderError(
                    f"cannot resume {self.path}: it was started with {key} = {before.get(key)}, now {now.get(key)}"
                )

    def write_config(self, config: Any) -> None:
        """Make the folder and write the resolved configuration."""
        for folder in (self.checkpoints, self.samples):
            folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.config_file) as temporary:
            temporary.write_text(yaml.safe_dump(as_plain(config), sort_keys=False))

    def check_data(self, digests: dict[str, str], changed_data: bool) -> None:
        """Refuse to go on with other images than the run was started with.

        Args:
            digests: of each source, by its name in the configuration.
            changed_data: whether other images are wanted.

        Raises:
            RunFolderError: a source has another digest, and ``changed_data`` is off.
        """
        try:
            before = read_json(self.data_file) if self.data_file.exists() else {}
            other = [name for name, digest in digests.items() if before.get(name, digest) != digest]
        except (ValueError, AttributeError):
            other = [f"{', '.join(digests)} ({self.data_file.name} is damaged)"]
        if other and not changed_data:
            raise RunFolderError(
                f"cannot resume {self.path}: the data of {', '.join(other)} have changed since it was started "
                "(names, sizes or times of files); put them back, or go on with the new ones: --changed-data"
            )

    def write_data(self, digests: dict[str, str]) -> None:
        """Record the digests of the images."""
        with atomic_write(self.data_file) as temporary:
            temporary.write_text(json.dumps(digests, indent=1))

    def clear_leftovers(self) -> None:
        """Remove what a run that was killed while it saved the tokenizer left beside it."""
        for leftover in self.path.glob(f".{self.tokenizer.name}.*"):
            shutil.rmtree(leftover)

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        complete = self.complete()
        return complete[-1] if complete else None

    def complete(self) -> list[Path]:
        """All complete checkpoints, the newest last."""
        return sorted(self.checkpoints.glob("step-*"), key=step_of)

    def newest_whole(self, warn: Callable[[str], None]) -> Path | None:
        """The newest checkpoint whose files are as they were written; None where there is no checkpoint.

        Args:
            warn: takes a line about each newer checkpoint that is damaged.

        Raises:
            RunFolderError: all checkpoints are damaged.
        """
        complete = self.complete()
        for checkpoint in reversed(complete):
            damage = damage_of(checkpoint)
            if damage is None:
                return checkpoint
            warn(f"{checkpoint} is damaged ({damage}): left out")
        if complete:
            raise RunFolderError(f"every checkpoint in {self.checkpoints} is damaged; start anew in another --output")
        return None

    def save(self, step: int, write: Callable[[Path], Any], reports: Reports, main: bool, keep: int) -> None:
        """Write a checkpoint atomically; every rank calls this.

        Args:
            step: the optimiser steps done.
            write: writes into the folder it is given; called on every rank.
            reports: see ``together``.
            main: whether this rank renames and deletes.
            keep: how many of the newest checkpoints stay.

        Raises:
            RunFolderError: the checkpoint could not be written, by whichever rank; earlier ones are untouched.
        """
        target = self.checkpoints / f"step-{step:08d}"
        temporary = self.checkpoints / f".writing-{step:08d}"

        def prepare() -> None:
            if main:
                for leftover in self.checkpoints.glob(".writing-*"):
                    shutil.rmtree(leftover)
                temporary.mkdir()

        def publish() -> None:
            if main:
                seal(temporary)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(temporary, target)
                for old in self.complete()[:-keep]:
                    shutil.rmtree(old)

        try:
            for action in (prepare, lambda: write(temporary), publish):
                together(action, reports, f"checkpoint at step {step} could not be written")
        except RunFolderError as error:
            if main:
                shutil.rmtree(temporary, ignore_errors=True)
            last = self.latest()
            kept = f"the last good one is {last}" if last else "there is none before it"
            raise RunFolderError(f"{error}; {kept}") from error


def together(action: Callable[[], Any], reports: Reports, failure: str) -> None:
    """Do something on every rank; where one rank fails, all raise, instead of waiting for it forever.

    Args:
        action: what this rank does.
        reports: takes this rank's report (None: all is well), waits for all ranks, and returns all reports.
        failure: how the message begins.

    Raises:
        RunFolderError: the action failed on a rank.
    """
    error = None
    try:
        action()
    except Exception as failed:  # torch, safetensors and the system each have a type of their own for a full disk
        error = failed
    said = reports(None if error is None else one_line(error))
    if any(report is not None for report in said):
        reason = next(report for report in said if report is not None)
        raise RunFolderError(f"{failure} ({reason})") from error


def seal(checkpoint: Path) -> None:
    """Write every file of a checkpoint through to the disk, and a list of their digests beside them."""
    digests = {file.name: sha256_of(file) for file in sorted(checkpoint.iterdir())}
    (checkpoint / DIGESTS).write_text(json.dumps(digests, indent=1))
    for path in (*checkpoint.iterdir(), checkpoint):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, None where they are as ``seal`` found them."""
    try:
        digests = read_json(checkpoint / DIGESTS)
        for name, digest in digests.items():
            if sha256_of(checkpoint / name) != digest:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"its files cannot be read: {error}"
    return None


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def as_plain(config: Any) -> dict[str, Any]:
    """A configuration as dictionaries, lists and plain values, as YAML holds it."""
    return _plain(config)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        values = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {f.name: _plain(v) for f, v in values.items() if not (f.metadata.get("later") and v == f.default)}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
