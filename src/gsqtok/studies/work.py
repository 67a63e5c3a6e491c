"""What a worker does: one run of a study, trained and measured, or timed."""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsqtok.data.workers import end_with_parent
from gsqtok.io import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

    from gsqtok.tokenizer import ImageTokenizer
    from gsqtok.training.config import TrainConfig

OUTCOME = "outcome.json"
LOG = "log.txt"


@dataclass(frozen=True)
class Job:
    """A run and where it happens.

    Attributes:
        name: for a person.
        folder: of the run; holds what training writes, ``log.txt`` and at the end ``outcome.json``.
        config: with output folder and images.
        batch: images a pass of a run that times; None for one that trains.
        features: network of the Fréchet distance.
        perceptual: further distances.
    """

    name: str
    folder: Path
    config: TrainConfig
    batch: int | None
    features: str | None
    perceptual: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a run: "done" with its figures, or "diverged" with why."""

    state: str
    figures: dict[str, float]
    environment: dict[str, Any]
    message: str = ""

    @classmethod
    def of(cls, folder: Path) -> Outcome | None:
        """The outcome in a run's folder; None while there is none."""
        file = folder / OUTCOME
        return cls(**json.loads(file.read_text("utf-8"))) if file.exists() else None


def start(device: int | None, threads: int | None) -> None:
    """Prepare a worker's process: its GPU (None: the CPU), its threads, and that it ends when its parent is killed."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if device is None else _visible(device)
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    # a spawned process would spawn its own, too: four that load images take a GPU's machine 16 s, forked ones none
    multiprocessing.set_start_method(None, force=True)
    end_with_parent()


def _visible(device: int) -> str:
    """The device's name among those that this machine's owner lets us see."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return allowed.split(",")[device] if allowed else str(device)


def work(job: Job) -> Outcome:
    """Do a job, with everything that it prints in its log; goes on where an earlier attempt stopped."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with _logged(job.folder / LOG):
        try:
            outcome = _trained(job) if job.batch is None else _timed(job)
        finally:
            _release()
    with atomic_write(job.folder / OUTCOME) as aside:
        aside.write_text(json.dumps(asdict(outcome), indent=1) + "\n", "utf-8")
    shutil.rmtree(job.folder / "training" / "checkpoints", ignore_errors=True)  # several times the tokenizer's size
    return outcome


def _trained(job: Job) -> Outcome:
    import torch

    from gsqtok.data import ImageTransform, open_source
    from gsqtok.evaluation import evaluate
    from gsqtok.evaluation.environment import environment
    from gsqtok.studies.chord import chord_error
    from gsqtok.tokenizer import ImageTokenizer
    from gsqtok.training import train
    from gsqtok.training.guards import TrainingDivergedError
    from gsqtok.training.images import fixed_images
    from gsqtok.training.run_folder import RunFolder

    folder = job.folder / "training"
    # measured below, in full: the run need not do it as well
    config = replace(job.config, output=str(folder), data=replace(job.config.data, validation=""))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        train(config, resume=(folder / "config.yaml").exists())
    except TrainingDivergedError as error:
        return Outcome("diverged", {}, environment(device), " ".join(str(error).split("; the last good")[0].split()))
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    _release()

    tokenizer = ImageTokenizer.from_pretrained(folder).to(device)
    data = job.config.data
    validation = open_source(data.validation, split=data.validation_split)
    transform = ImageTransform(data.size)
    _show(tokenizer, fixed_images(data, validation), job.folder / "images.png")
    result = evaluate(
        tokenizer,
        validation,
        name=job.name,
        transform=transform,
        features=job.features,
        perceptual=job.perceptual,
        source=str(data.validation),
        split=data.validation_split,
        batch_size=100,
        workers=data.workers,
    )
    result.save(job.folder / "evaluation.json")
    figures = {name: value for name, value in result.items() if name != "images_per_second"}
    figures |= {"skipped_steps": _skipped_steps(RunFolder(folder).metrics()), "training_seconds": seconds}
    if peak is not None:
        figures["training_memory_gib"] = peak
    error = chord_error(tokenizer, validation, transform, images=1000)
    if error is not None:
        figures["chord_error"] = error
    finite = {name: float(value) for name, value in figures.items() if value is not None and math.isfinite(value)}
    return Outcome("done", finite, result.environment)


def _show(tokenizer: ImageTokenizer, images: Tensor, file: Path) -> None:
    """Write images (N, 3, H, W) above their reconstructions."""
    from gsqtok.io import save_image
    from gsqtok.training.images import grid_of

    images = images.to(tokenizer.device)
    restored = tokenizer.decode(tokenizer.encode(images), size=tuple(images.shape[2:]))
    save_image(grid_of(images.cpu(), restored.cpu()), file)


def _timed(job: Job) -> Outcome:
    import torch

    from gsqtok.evaluation.environment import environment
    from gsqtok.studies.timing import time_tokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Outcome("done", time_tokenizer(job.config, job.batch, device), environment(device))


def _skipped_steps(metrics: list[dict[str, Any]]) -> float:
    """Of the last log line."""
    return next((line["skipped_steps"] for line in reversed(metrics) if "skipped_steps" in line), 0.0)


def _release() -> None:
    """Give back what the last run held: graphs and modules refer to themselves."""
    gc.collect()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    """Everything printed, by libraries and loader processes too, goes to the file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with file.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, original in enumerate(kept, 1):
            os.dup2(original, number)
            os.close(original)
