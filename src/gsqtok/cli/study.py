"""gsqtok study."""

from __future__ import annotations

import argparse
import shlex
import time
from typing import TYPE_CHECKING

from gsqtok.cli.options import SOURCE, console, parser, progress

if TYPE_CHECKING:
    from gsqtok.studies.run import Images
    from gsqtok.studies.study import Study
    from gsqtok.studies.work import Job, Outcome


def main(argv: list[str]) -> None:
    """Run the paper's experiments and its open questions."""
    p = parser(
        "study",
        "Run the paper's experiments and its open questions: tables of trainings and measurements, with a page of\n"
        "results and plots. Run the same command again after an interruption: what is done is not done again.",
        "  gsqtok study ls\n"
        "  gsqtok study precision --scale smoke\n"
        "  gsqtok study methods groups --data tiny-imagenet-64/ --output studies/\n"
        "  gsqtok study precision --data train.parquet --validation validation.parquet --steps 300",
    )
    p.add_argument("names", nargs="+", metavar="NAME", help="studies, or all; ls lists them with what they cost")
    p.add_argument(
        "--scale",
        choices=("smoke", "small", "paper"),
        default="small",
        help="smoke: seconds on a CPU; small: 64 px, minutes to an hour of one GPU; paper: its own setting "
        "(default: small)",
    )
    p.add_argument(
        "--data",
        nargs="+",
        metavar="SOURCE",
        help=f"{SOURCE}; without --validation its splits train and validation (smoke: the demo's images)",
    )
    p.add_argument("--validation", metavar="SOURCE", help="images to measure on")
    p.add_argument("-o", "--output", default="studies", metavar="FOLDER", help="default: studies")
    p.add_argument("--devices", help="GPUs by number, such as 0,1, or cpu (default: all GPUs, else the CPU)")
    p.add_argument(
        "--per-device",
        type=int,
        default=1,
        help="runs that share a device (default: 1; on a GPU they take turns, so more of them are rarely done sooner)",
    )
    p.add_argument("--steps", type=int, help="of each training (default: the scale's)")
    args = p.parse_args(argv)

    from gsqtok.studies import STUDIES

    if args.names == ["ls"]:
        _list(args.scale, args.steps)
        return
    names = list(STUDIES) if args.names == ["all"] else list(dict.fromkeys(args.names))
    if unknown := [name for name in names if name not in STUDIES]:
        raise ValueError(f"no study '{unknown[0]}'; there are {', '.join(STUDIES)}, all")
    images, devices = _images(args), _devices(args.devices)
    if args.per_device < 1:
        raise ValueError(f"--per-device must be at least 1, got {args.per_device}")
    _run([STUDIES[name] for name in names], args, argv, images, devices)


def _run(
    studies: list[Study],
    args: argparse.Namespace,
    argv: list[str],
    images: Images,
    devices: list[int | None],
) -> None:
    from gsqtok.studies.page import said
    from gsqtok.studies.run import run_studies

    where = "the CPU" if devices == [None] else f"GPU {', '.join(map(str, devices))}"
    console.print(f"{', '.join(study.name for study in studies)} at the {args.scale} scale, on {where}")
    console.print(f"each run's own log: {args.output}/runs/*/log.txt")
    began = time.monotonic()
    with progress("runs") as bar:
        task = bar.add_task("", total=None)

        def seen(job: Job, outcome: Outcome | None, problem: str, left: int) -> None:
            done = int(bar.tasks[task].completed) + 1
            bar.update(task, completed=done, total=done + left)
            console.print(f"{job.name}: {_told(outcome, problem)}  [{time.monotonic() - began:,.0f} s, {left} left]")

        tables = run_studies(
            studies,
            args.scale,
            images,
            args.output,
            devices=devices,
            per_device=args.per_device,
            steps=args.steps,
            command=f"gsqtok study {shlex.join(argv)}",
            progress=seen,
        )
    failed = 0
    for study, table in zip(studies, tables, strict=True):
        failed += sum(row.state in ("failed", "not run") for row in table.rows)
        console.print(f"{args.output}/{study.name}-{args.scale}/README.md")
        for finding in said(study, table):
            console.print(f"  {finding.verdict}: {finding.claim}. {finding.because}")
    if failed:
        raise ValueError(f"{failed} runs failed; their reasons are on the page, and the same command tries them again")


def _told(outcome: Outcome | None, problem: str) -> str:
    if outcome is None:
        return f"failed, {problem}"
    if outcome.state != "done":
        return f"{outcome.state}, {outcome.message}"
    figures = outcome.figures
    if "psnr" in figures:
        usage = f", usage {figures['usage']:.2%}" if "usage" in figures else ""
        return f"{figures['psnr']:.2f} dB at {figures['bits_per_pixel']:.4g} bits/px{usage}"
    return f"quantizer {figures['quantizer_ms']:.3g} ms, encode {figures['encode_ms']:.3g} ms"


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
        trained = [run.config for run in runs if run.batch is None]
        seen = sum(config.steps * config.batch_size for config in trained)
        table.add_row(
            study.name, study.question, str(len(trained)), str(len(runs) - len(trained)), f"{seen / 1e6:.4g}M"
        )
    console.print(table)


def _images(args: argparse.Namespace) -> Images:
    from gsqtok.studies.run import Images

    if args.data is None:
        if args.scale != "smoke":
            raise ValueError("no images: name them with --data, and those to measure on with --validation")
        from gsqtok.cli.demo import IMAGES

        return Images(str(IMAGES), str(IMAGES))
    train = args.data[0] if len(args.data) == 1 else args.data
    if args.validation:
        return Images(train, args.validation)
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
