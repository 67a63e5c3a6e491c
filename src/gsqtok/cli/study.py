"""gsqtok study."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from gsqtok.cli import options
from gsqtok.cli.options import check_output_folder, console, progress

if TYPE_CHECKING:
    from gsqtok.studies.run import Images
    from gsqtok.studies.runner import Outcome


def study(
    names: list[str],
    *,
    scale: Literal["smoke", "small", "compact", "compact-256", "medium", "paper"] = "small",
    data: list[str] | None = None,
    validation: str | None = None,
    cache: str | None = None,
    output: str = "studies",
    devices: str | None = None,
    per_device: int = 1,
    steps: int | None = None,
    prior_steps: int | None = None,
    only: list[str] | None = None,
    seconds: int | None = None,
) -> None:
    """Run the paper's experiments and its open questions.

    Each study is a table of trainings and measurements, with a page of results and plots. After an interruption run the
    same command again: what is done is not done again.

    Args:
        names: of studies, or all; ls lists them with what they cost
        scale: smoke takes seconds on a CPU; small (64 px) minutes to an hour of one GPU; compact and compact-256 have
            the same settings and networks as of the recipe f8-small, at 64 and 256 px; medium has larger ones at 256
            px; paper is the paper's own setting
        data: images to train on, as gsqtok train takes them; without --validation their splits train and validation
            (smoke: the demo's images)
        validation: images to measure on
        cache: a folder where training images are kept as they are once decoded, for all runs and later ones
        output: the folder for runs, results and pages
        devices: GPUs by number, such as 0,1, or cpu (default: all GPUs, else the CPU)
        per_device: runs that share a device; on a GPU they take turns, and one fills the pauses of another
        steps: of each training (default: the scale's)
        prior_steps: train the yardstick prior (10M parameters, one recipe for all) for so many steps on each
            tokenizer's tokens, and say what they cost under it (default: no prior)
        only: run only the lines of the table that have these values, such as f=8 rate=0.28
        seconds: begin no further run after so many; the same command goes on

    Example:
          gsqtok study ls
          gsqtok study precision --scale smoke
          gsqtok study methods groups --data tiny-imagenet-64/ --output studies/
          gsqtok study precision --data train.parquet --validation validation.parquet --steps 300
          gsqtok study headtohead --data tiny-imagenet-64/ --prior-steps 500 --only f=8 rate=0.28 rate=0.56
    """
    from gsqtok.studies import STUDIES
    from gsqtok.studies.page import said
    from gsqtok.studies.run import run_studies

    if names == ["ls"]:
        _list(scale, steps)
        return
    wanted = list(STUDIES) if names == ["all"] else list(dict.fromkeys(names))
    if unknown := [name for name in wanted if name not in STUDIES]:
        raise ValueError(f"no study '{unknown[0]}'; there are {', '.join(STUDIES)}, all")
    if per_device < 1:
        raise ValueError(f"--per-device must be at least 1, got {per_device}")
    images, where = replace(_images(data, validation, scale), cache=cache), _devices(devices)
    check_output_folder(output)
    chosen = [STUDIES[name] for name in wanted]
    on = "the CPU" if where == [None] else f"GPU {', '.join(map(str, where))}"
    console.print(f"{', '.join(study.name for study in chosen)} at the {scale} scale, on {on}")
    console.print(f"each run's own log: {output}/runs/*/log.txt")
    with _Watched() as watched:
        tables = run_studies(
            chosen,
            scale,
            images,
            output,
            devices=where,
            per_device=per_device,
            steps=steps,
            prior_steps=prior_steps,
            only=_only(only or []),
            seconds=seconds,
            command=options.command,
            progress=watched.seen,
        )
    failed, undone = 0, 0
    for study, table in zip(chosen, tables, strict=True):
        failed += sum(row.state == "failed" for row in table.rows)
        undone += sum(row.state == "not run" for row in table.rows)
        console.print(f"{output}/{study.name}-{scale}/README.md")
        for finding in said(study, table):
            because = "" if finding.verdict == "not tested" else f" {finding.because}"
            console.print(f"  {finding.verdict}: {finding.claim}.{because}")
    if undone:
        console.print(f"{undone} runs are not done: without --only and --seconds the same command goes on with them")
    if failed:
        raise ValueError(f"{failed} runs failed; their reasons are on the page, and the same command tries them again")


class _Watched:
    """The progress bar, and a line for each run that ended."""

    def __enter__(self) -> _Watched:
        self.began, self.bar = time.monotonic(), progress("runs")
        self.bar.start()
        self.task = self.bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def seen(self, name: str, outcome: Outcome | None, problem: str, left: int) -> None:
        """Say how a run ended."""
        done = int(self.bar.tasks[self.task].completed) + 1
        self.bar.update(self.task, completed=done, total=done + left)
        console.print(f"{name}: {_told(outcome, problem)}  [{time.monotonic() - self.began:,.0f} s, {left} left]")


def _told(outcome: Outcome | None, problem: str) -> str:
    if outcome is None:
        return f"failed, {problem}"
    if outcome.state != "done":
        return f"{outcome.state}, {outcome.message}"
    metrics = outcome.metrics
    if "psnr" in metrics:
        usage = f", usage {metrics['usage']:.2%}" if "usage" in metrics else ""
        prior = metrics.get("bits_per_pixel_prior")
        cost = "" if prior is None else f", {prior:.4g} under the prior"
        return f"{metrics['psnr']:.2f} dB at {metrics['bits_per_pixel']:.4g} bits/px{cost}{usage}"
    return f"quantizer {metrics['quantizer_ms']:.3g} ms, encode {metrics['encode_ms']:.3g} ms"


def _only(said: list[str]) -> dict[str, set[str]]:
    """The values of each column: ``["f=8", "rate=0.28", "rate=0.56"]`` -> {"f": {"8"}, "rate": {"0.28", "0.56"}}."""
    found: dict[str, set[str]] = {}
    for text in said:
        column, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--only takes COLUMN=VALUE, such as f=8; got '{text}'")
        found.setdefault(column, set()).add(value)
    return found


def _list(scale: str, steps: int | None) -> None:
    from rich import box
    from rich.table import Table

    from gsqtok.studies import STUDIES
    from gsqtok.studies.run import held_at
    from gsqtok.studies.scale import SCALES

    held = held_at(SCALES[scale], steps)
    table = Table(title=f"--scale {scale}: {held.summary}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("study", "asks"):
        table.add_column(name, overflow="fold")
    for name in ("trains", "times", "images seen"):
        table.add_column(name, justify="right", no_wrap=True)
    for study in STUDIES.values():
        runs = study.runs(held)
        trained = [run.config for run in runs if run.batch is None and run.codec is None]
        seen = sum(config.steps * config.batch_size for config in trained)
        table.add_row(
            study.name,
            study.question,
            str(len(trained)),
            str(sum(run.batch is not None for run in runs)),
            f"{seen / 1e6:.4g}M",
        )
    console.print(table)


def _images(data: list[str] | None, validation: str | None, scale: str) -> Images:
    from gsqtok.studies.run import Images

    if data is None:
        if scale != "smoke":
            raise ValueError("no images: name them with --data, and those to measure on with --validation")
        from gsqtok.cli.demo import IMAGES

        return Images(str(IMAGES), str(IMAGES))
    train = data[0] if len(data) == 1 else data
    if validation:
        return Images(train, validation)
    return Images(train, train, "train", "validation")


def _devices(named: str | None) -> list[int | None]:
    import torch

    count = torch.cuda.device_count()
    if named == "cpu" or (named is None and count == 0):
        return [None]
    if named is None:
        return list(range(count))
    try:
        numbers = [int(number) for number in named.split(",")]
    except ValueError:
        raise ValueError(f"--devices names GPUs by number, such as 0,1, or cpu; got '{named}'") from None
    if wrong := [number for number in numbers if not 0 <= number < count]:
        raise ValueError(f"there is no GPU {wrong[0]}: torch sees {count}")
    return list(numbers)
