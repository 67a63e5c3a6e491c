"""What a run tells: a progress bar and log lines for a person, TensorBoard curves, metrics.jsonl for a machine."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker, get_available_trackers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from gsqtok.data.display import grid
from gsqtok.io import atomic_write, save_image
from gsqtok.training.run_folder import RunFolder

PROJECT = "gsqtok"  # under which trackers that know projects file a run


class RunLog:
    """Log lines, curves and sample grids of one run; silent on ranks other than the first."""

    def __init__(self, run: RunFolder, accelerator: Accelerator, start: int, steps: int) -> None:
        self.main = accelerator.is_main_process
        self.accelerator = accelerator
        self.run = run
        self.console = Console(highlight=False, stderr=True)
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.main,
        )
        self.task = self.progress.add_task("", total=steps, completed=start, rate="")
        self.start, self.steps = start, steps
        self.images = 0
        self.began = self.since = time.perf_counter()
        if self.main:
            _keep_until(run.metrics_file, start)
        curves = TensorBoardTracker("", str(run.tensorboard), purge_step=start + 1)  # no folder of a project between
        accelerator.log_with = [curves if str(name) == "tensorboard" else name for name in accelerator.log_with]
        accelerator.init_trackers(PROJECT, init_kwargs={"wandb": {"name": run.path.name, "dir": str(run.path)}})

    def __enter__(self) -> RunLog:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.progress.stop()
        self.accelerator.end_training()

    def advance(self, step: int, images: int) -> None:
        """One step is done, with so many images over all ranks."""
        self.images += images
        self.progress.update(self.task, completed=step)

    def line(self, message: str) -> None:
        """Something that a person should read."""
        if self.main:
            self.console.print(message, markup=False, soft_wrap=True)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Means of the training steps since the last call; adds images a second."""
        elapsed = time.perf_counter() - self.since
        values = values | {"images_per_second": self.images / elapsed}
        self.progress.update(self.task, rate=f"{_short(values['images_per_second'])} images/s")
        self.images, self.since = 0, time.perf_counter()
        gone = time.perf_counter() - self.began
        left = gone / max(1, step - self.start) * (self.steps - step)
        shown_already = self.console.is_terminal  # by the bar
        self.measured(step, values, "" if shown_already else f"  {_time(gone)} gone, {_time(left)} left")

    def measured(self, step: int, values: dict[str, Any], more: str = "") -> None:
        """Other metrics: to the console (with something more at the end), the curves and metrics.jsonl."""
        if not self.main:
            return
        shown = "  ".join(f"{name.removeprefix('loss/')} {_short(value)}" for name, value in values.items())
        self.line(f"step {step}/{self.steps}  {shown}{more}")
        self.accelerator.log(values, step=step)
        with self.run.metrics_file.open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")

    def pause(self) -> float:
        """The clock, to be handed to ``go_on`` after work that is not training."""
        return time.perf_counter()

    def go_on(self, paused_at: float) -> None:
        """Leave the time since ``pause`` out of images a second."""
        self.since += time.perf_counter() - paused_at

    def grid(self, step: int, images: Tensor, reconstructions: Tensor) -> None:
        """Save images (N, 3, H, W) above their reconstructions, to samples/ and to the curves."""
        if not self.main:
            return
        image = grid([*images, *reconstructions], len(images))
        save_image(image, self.run.samples / f"step-{step:08d}.png")
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"reconstructions": np.asarray(image)[None]}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({"reconstructions": [image]}, step=step)


def checked_trackers(names: Sequence[str]) -> list[str]:
    """The trackers' names, each known to Accelerate and installed.

    Raises:
        ValueError: an unknown one, or one whose package is missing.
    """
    known = sorted(name for name in LOGGER_TYPE_TO_CLASS)
    for name in names:
        if name not in known:
            raise ValueError(f"no tracker '{name}'; Accelerate knows {', '.join(known)}")
        if name not in [str(tracker) for tracker in get_available_trackers()]:
            raise ValueError(f"tracker {name} is not installed: pip install {name}, or leave it out of trackers")
    return list(names)


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _keep_until(metrics_file: Path, step: int) -> None:
    """Drop lines beyond the step that a resumed run goes on from: they will be written again."""
    if metrics_file.exists():
        lines = metrics_file.read_text(errors="replace").splitlines()
        with atomic_write(metrics_file) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines if _step_of(line) <= step))


def _step_of(line: str) -> float:
    """The step of a line; infinite where it is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf
