"""One run of a study, trained and measured, or timed; and runs spread over devices."""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsqtok.data.workers import ignore_all_but_sigterm, processors, watch_parent
from gsqtok.io import atomic_write, one_line, read_json
from gsqtok.studies.afterwards import decoder_training
from gsqtok.studies.cost import TokenCost, prior_config
from gsqtok.studies.scale import Scale
from gsqtok.studies.study import Run
from gsqtok.training.interruption import InterruptedRunError, Interruption

if TYPE_CHECKING:
    from torch import Tensor

    from gsqtok.evaluation.features import FeatureNetwork
    from gsqtok.evaluation.perceptual import ImageDistance
    from gsqtok.tokenizer import ImageTokenizer
    from gsqtok.training.config import TrainConfig

OUTCOME = "outcome.json"
LOG = "log.txt"
_BY_GROUPS = ("psnr", "ssim", "bits_per_pixel")
_SECONDS_BETWEEN_LOOKS = 0.5  # at whether a signal asked to stop


@dataclass(frozen=True)
class Outcome:
    """What became of a run: "done" with its metrics, or "diverged" with why."""

    state: str
    metrics: dict[str, float]
    environment: dict[str, Any]
    message: str = ""

    @classmethod
    def of(cls, folder: Path) -> Outcome | None:
        """Read the outcome in a run's folder; None while there is none, or where it is damaged: it is run again."""
        try:
            return cls(**read_json(folder / OUTCOME))
        except (FileNotFoundError, ValueError, TypeError):
            return None


@dataclass(frozen=True)
class PlacedRun:
    """A run, where it happens and how it is measured.

    Attributes:
        name: for a person.
        run: whose configuration names the images.
        folder: holds what training writes, ``log.txt`` and at the end ``outcome.json``.
        scale: names the networks that measure.
        prior_steps: train a prior of so many steps on the tokens, too, and measure what they cost; None: do not.
    """

    name: str
    run: Run
    folder: Path
    scale: Scale
    prior_steps: int | None = None

    def outcome(self) -> Outcome | None:
        """All that was asked for, as earlier starts have left it; None where something is missing."""
        found, cost = Outcome.of(self.folder), self.cost()
        if found is None or cost is None or found.state != "done":
            return found
        metrics = cost.read()
        return None if metrics is None else replace(found, metrics=found.metrics | metrics)

    def cost(self) -> TokenCost | None:
        """What measures the tokens under a prior; None where that is not asked for, or it has none of its own."""
        config, first = self.run.config, self.run.first
        trained = self.run.batch is None and self.run.codec is None and config.model.quantizer.name != "identity"
        if self.prior_steps is None or not trained or (first is not None and first.model == config.model):
            return None
        return TokenCost(self.folder, config.data, prior_config(self.scale.name, config.data.size, self.prior_steps))


Report = Callable[[PlacedRun, "Outcome | None", str], None]


def run_all(
    runs: Iterable[PlacedRun],
    devices: Sequence[int | None],
    per_device: int,
    report: Report,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Execute every run; one that fails does not stop the others.

    Codecs are measured by the processor, beside what GPUs do. Runs that go on from another one come after it. Those
    that time a model come last, one at a time on the first device: a small model's time is the processor's, and
    whatever else the machine does would be part of it.

    Args:
        runs: executed in this order, as devices become free.
        devices: GPUs by number; None is the CPU.
        per_device: runs that share a device; a small model alone does not fill a GPU.
        report: called with each run's outcome, or with None and why it failed.
        enough: asked before each run whether no more should begin.

    Raises:
        InterruptedRunError: a signal asked to stop (SIGTERM, SIGUSR1, Ctrl-C); trainings under way have saved.
    """
    runs = list(runs)
    slots = [d for _ in range(per_device) for d in devices]
    trained = [r for r in runs if r.run.batch is None]
    alone, later = ([r for r in trained if (r.run.first is not None) == goes_on] for goes_on in (False, True))
    processes: list[int | None] = []
    if None not in devices:
        codecs = sum(r.run.codec is not None for r in runs)
        processes = [None] * min(codecs, max(1, processors() // 2))
    timed = [r for r in runs if r.run.batch is not None]
    with Interruption() as interruption:
        for part, where in ((alone, slots + processes), (later, slots), (timed, devices[:1])):
            if part and interruption.name is None:
                _spread(part, where, report, enough, interruption)
    if interruption.name is not None:
        raise InterruptedRunError(
            f"stopped by {interruption.name}; what was trained is saved: the same command goes on"
        )


def _spread(
    runs: Sequence[PlacedRun],
    slots: Sequence[int | None],
    report: Report,
    enough: Callable[[], bool],
    interruption: Interruption,
) -> None:
    """A pool of one process for each slot: a run that takes its process down takes no other with it."""
    waiting, free = list(runs), deque(range(len(slots)))
    cpus_for_all = all(device is None for device in slots)  # beside GPUs they measure codecs only
    pools: dict[int, ProcessPoolExecutor] = {}
    busy: dict[Future[Outcome], tuple[int, PlacedRun]] = {}
    told = False
    try:
        while waiting or busy:
            if interruption.name or enough():
                waiting.clear()
            for slot in list(free):
                suited = (r for r in waiting if cpus_for_all or (r.run.codec is not None) == (slots[slot] is None))
                if (run := next(suited, None)) is None:
                    continue
                free.remove(slot)
                waiting.remove(run)
                if slot not in pools:
                    pools[slot] = _pool(slots[slot], len(slots))
                busy[pools[slot].submit(_execute_with_log, run)] = slot, run
            for future in wait(busy, timeout=_SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED).done:
                slot, run = busy.pop(future)
                free.append(slot)
                outcome, problem = None, ""
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    problem = "its process was killed (out of memory?)"
                    pools.pop(slot).shutdown()
                except Exception as error:  # whatever a run may raise, the next one may do better
                    problem = f"{type(error).__name__}: {one_line(error)}"
                if outcome is not None or not told:  # what was told to stop has not failed
                    report(run, outcome, problem)
            if interruption.name and not told:
                told = True
                _tell_to_stop()
    except BaseException:
        _tell_to_stop()  # a second signal, seconds later; they would first finish their runs
        raise
    finally:
        for pool in pools.values():
            pool.shutdown()


def _tell_to_stop() -> None:
    """Ask the processes to stop: one that trains saves first, any other ends at once."""
    for process in multiprocessing.active_children():
        process.terminate()


def _pool(device: int | None, slots: int) -> ProcessPoolExecutor:
    threads = max(1, processors() // slots) if device is None else None
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=(device, threads))


def _start(device: int | None, threads: int | None) -> None:
    """Prepare a process: its GPU (None: the CPU), its threads, and that it ends when its parent says so or is killed.

    Signals reach every process of a terminal or a job: here they wait for the parent's own, which is SIGTERM.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # the machine's owner may let us see only some
    os.environ["CUDA_VISIBLE_DEVICES"] = (
        "" if device is None else visible.split(",")[device] if visible else str(device)
    )
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    # a spawned process would spawn its own, too: four that load images take a GPU's machine 16 s, forked ones none
    multiprocessing.set_start_method(None, force=True)
    ignore_all_but_sigterm()
    watch_parent()


def _execute_with_log(run: PlacedRun) -> Outcome:
    """Execute a run in a process of its own: everything printed, by libraries and loader processes too, is logged."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / LOG).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    return execute(run)


def execute(run: PlacedRun) -> Outcome:
    """Execute a run, from where an earlier attempt stopped, and write its outcome into its folder."""
    outcome, cost = Outcome.of(run.folder) or _executed(run), run.cost()
    if cost is None or outcome.state != "done":
        return outcome
    try:
        return replace(outcome, metrics=outcome.metrics | (cost.read() or cost.measure()))
    finally:
        _release()


def _executed(run: PlacedRun) -> Outcome:
    try:
        if run.run.codec is not None:
            outcome = _of_codec(run, run.run.codec)
        else:
            outcome = _trained(run) if run.run.batch is None else _timed(run.run, run.run.batch)
    finally:
        _release()
    with atomic_write(run.folder / OUTCOME) as temporary:
        temporary.write_text(json.dumps(asdict(outcome), indent=1) + "\n", "utf-8")
    for leftover in ("training/checkpoints", "first"):  # several times the tokenizer's size
        shutil.rmtree(run.folder / leftover, ignore_errors=True)
    return outcome


def _trained(run: PlacedRun) -> Outcome:
    import torch

    from gsqtok.evaluation.environment import environment
    from gsqtok.studies.curves import training_metrics
    from gsqtok.training.guards import TrainingDivergedError
    from gsqtok.training.run_folder import RunFolder

    folder, config = run.folder / "training", decoder_training(run.run, run.folder, _train)
    config = replace(config, output=str(folder))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        _train(config)
    except TrainingDivergedError as error:
        message = " ".join(str(error).split("; the last good")[0].split())
        return Outcome("diverged", {}, environment(torch.device("cuda" if cuda else "cpu")), message)
    metrics = {"training_seconds": time.perf_counter() - began}
    if cuda:
        metrics["training_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    metrics |= training_metrics(RunFolder(folder).metrics())
    _release()
    measured, surroundings = _measured(run, folder)
    return Outcome("done", measured | metrics, surroundings)


def _train(config: TrainConfig) -> None:
    """Train, from where an earlier attempt stopped, without measuring."""
    from gsqtok.training import train

    config = replace(config, data=replace(config.data, validation=""))
    train(config, resume=(Path(config.output) / "config.yaml").exists())


def _measured(run: PlacedRun, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of a trained tokenizer, and where they were measured; writes ``images.png`` and the evaluation."""
    import torch

    from gsqtok.data import ImageTransform, open_source
    from gsqtok.evaluation import evaluate
    from gsqtok.studies.rates import metrics_by_groups, nested_metrics
    from gsqtok.studies.spherical_error import spherical_error
    from gsqtok.tokenizer import ImageTokenizer
    from gsqtok.training.images import fixed_images

    tokenizer = ImageTokenizer.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    data = run.run.config.data
    batch_size = min(100, max(1, 2**21 // data.size**2))
    validation, transform = open_source(data.validation, split=data.validation_split), ImageTransform(data.size)
    _show(tokenizer, fixed_images(data, validation), run.folder / "images.png")
    features = _features(run.scale.features)
    result = evaluate(
        tokenizer,
        validation,
        name=run.name,
        transform=transform,
        features=features,
        perceptual=[_distance(name) for name in run.scale.perceptual],
        source=str(data.validation),
        split=data.validation_split,
        batch_size=batch_size,
        workers=data.workers,
    )
    result.save(run.folder / "evaluation.json")
    error = spherical_error(tokenizer, validation, transform, images=1000, workers=data.workers)
    metrics = dict(result) | {"spherical_error": error}
    if result.codebook is not None:
        tokens, size = result.codebook["positions"] * result.codebook["groups"], result.codebook["codebook_size"]
        metrics["usage_if_even"] = -math.expm1(tokens * math.log1p(-1 / size)) if size > 1 else 1.0
    if tokenizer.quantizer.nested is not None:
        loading = {"batch_size": batch_size, "workers": data.workers}
        metrics |= metrics_by_groups(tokenizer, validation, transform, features=features, **loading)
        of_all = [name for name in result if name in _BY_GROUPS or name.startswith("frechet_distance")]
        metrics |= {f"{name}_groups_{tokenizer.quantizer.tokens_per_position}": result[name] for name in of_all}
        metrics |= nested_metrics(tokenizer, validation, transform, images=500, workers=data.workers)
    return _finite(metrics), result.environment


@cache
def _features(name: str | None) -> FeatureNetwork | None:
    """The network of the Fréchet distance, loaded once for all runs of a process."""
    from gsqtok.evaluation.features import build_features

    return None if name is None else build_features(name)


@cache
def _distance(name: str) -> ImageDistance:
    """Likewise a network of a perceptual distance."""
    from gsqtok.evaluation.perceptual import ImageDistance

    return ImageDistance(name, download=True)


def _of_codec(run: PlacedRun, codec: str) -> Outcome:
    """The metrics of an image codec on the same images."""
    from gsqtok.data import ImageTransform, open_source
    from gsqtok.evaluation import Codec, evaluate_codec

    data = run.run.config.data
    result = evaluate_codec(
        Codec.parse(codec),
        open_source(data.validation, split=data.validation_split),
        transform=ImageTransform(data.size),
        source=str(data.validation),
        split=data.validation_split,
        features=_features(run.scale.features),
        perceptual=[_distance(name) for name in run.scale.perceptual],
        workers=data.workers,
    )
    return Outcome("done", _finite(result.metrics), result.environment)


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if value is not None and math.isfinite(value) and not name.endswith("images_per_second")
    }


def _show(tokenizer: ImageTokenizer, images: Tensor, file: Path) -> None:
    """Write images (N, 3, H, W) above their reconstructions."""
    from gsqtok.data.display import grid
    from gsqtok.io import save_image

    images = images.to(tokenizer.device)
    restored = tokenizer.decode(tokenizer.encode(images), size=(images.shape[2], images.shape[3]))
    save_image(grid([*images.cpu(), *restored.cpu()], len(images)), file)


def _timed(run: Run, batch: int) -> Outcome:
    import torch

    from gsqtok.evaluation.environment import environment
    from gsqtok.studies.timing import time_tokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Outcome("done", time_tokenizer(run.config, batch, device), environment(device))


def _release() -> None:
    """Give back what the last run held: graphs and modules refer to themselves."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
