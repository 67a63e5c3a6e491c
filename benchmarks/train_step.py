"""Images/s and peak memory of a training step, without a discriminator and against each of them.

    python benchmarks/train_step.py --device cuda          the paper's f8 model at 128 px
    python benchmarks/train_step.py --quick                a tiny model on the CPU, to see that it runs
    torchrun --nproc-per-node 2 benchmarks/train_step.py --recipe f8-64px --stages none --batch-size 320
                                                           160 images on each of two GPUs

One step is what training does: the tokenizer's gradient, the discriminator's, both updates, the average. Reading
images and the perceptual term are left out. Stage ``none`` is the VAE stage; ``cost`` is a step's time over that of
the first stage in the same run. The batch is that of all ranks together; memory is that of the fullest rank. The
projected discriminator's backbone has random weights: they cost what trained ones do.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import tempfile
import time
from itertools import repeat
from pathlib import Path
from unittest import mock

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from table import Table, add_json

import gsqtok
from gsqtok.cli.parser import parse
from gsqtok.cli.train import train
from gsqtok.networks.backbone import random_backbone
from gsqtok.training import TrainConfig, Trainer
from gsqtok.training import adversarial as adversarial_side
from gsqtok.training.adversarial import DiscriminatorObjective

STAGES = ("none", "patch", "stylegan", "projected")
COLUMNS = {
    "stage": ("stage", ""),
    "ranks": ("ranks", "d"),
    "mode": ("mode", ""),
    "batch_size": ("batch", "d"),
    "size": ("px", "d"),
    "images_per_second": ("images/s", ",.1f"),
    "images_per_second_per_rank": ("a rank", ",.1f"),
    "seconds_per_step": ("s a step", ".4f"),
    "cost": ("of the first", ".2f"),
    "peak_gib": ("peak, GiB", ".2f"),
}


def configured(args: argparse.Namespace, stage: str, folder: str) -> TrainConfig:
    recipe = "smoke" if args.quick else args.recipe
    images = str(Path(gsqtok.__file__).parent / "demo_images")
    words = [recipe, "--data.train", images, "--output", folder, "--data.workers", "0"]
    config = parse("train", train, words)["config"]
    options = {"channels": 8, "multipliers": [2, 2]} if stage == "stylegan" and args.quick else {}
    adversarial = dataclasses.replace(
        config.adversarial, discriminator=stage, backbone=args.backbone, options=options, start_step=0
    )
    loss = dataclasses.replace(config.loss, perceptual_weight=0.0)  # its cost is the same in every row
    return dataclasses.replace(
        config,
        adversarial=adversarial,
        loss=loss,
        trackers=(),
        batch_size=args.batch_size or (4 if args.quick else config.batch_size),
        cuda_graphs=not args.eager,
        precision=args.precision or config.precision,
    )


def measure(args: argparse.Namespace, stage: str) -> dict[str, float | str]:
    with tempfile.TemporaryDirectory() as folder:
        config = configured(args, stage, folder + "/run")

        def objective(wanted, components):
            backbone = random_backbone(wanted.backbone, embedding=True) if stage == "projected" else None
            return DiscriminatorObjective(wanted, backbone, components)

        with mock.patch.object(adversarial_side, "DiscriminatorObjective", objective):
            trainer = Trainer(config)
        device, ranks = trainer.accelerator.device, trainer.accelerator.num_processes
        size = config.data.size
        parts = config.gradient_accumulation
        graphs = config.cuda_graphs and device.type == "cuda"
        shape = (config.batch_size // parts // ranks, size, size, 3)  # as the loader gives them
        images = torch.randint(256, shape, dtype=torch.uint8, device=device)
        batches = repeat({"image": images, "skipped": []})
        for step in range(1, args.warmup + 1):
            trainer.step(step, batches)
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        wait()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        for step in range(args.warmup + 1, args.warmup + args.steps + 1):
            trainer.step(step, batches)
        wait()  # once: in training the host may be some steps ahead of a GPU, too
        seconds = (time.perf_counter() - start) / args.steps
        trainer.guard.settle()
        if trainer.guard.skipped:
            raise RuntimeError(f"{stage}: {trainer.guard.skipped} steps were not finite")
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else process_peak()
        seconds, peak = (max(gather_object([value])) for value in (seconds, peak))
        return {
            "stage": stage,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "ranks": ranks,
            "mode": "graphs" if graphs else "eager",
            "size": size,
            "batch_size": config.batch_size,
            "precision": config.precision,
            "seconds_per_step": seconds,
            "images_per_second": config.batch_size / seconds,
            "images_per_second_per_rank": config.batch_size / seconds / ranks,
            "peak_gib": peak / 2**30,
        }


def process_peak() -> int:
    """On a CPU: the most that the process has held so far, so later rows are never below earlier ones."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps")
    parser.add_argument("--recipe", default="gan-f8-128", help="whose model, size and batch (default: gan-f8-128)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="default: all")
    parser.add_argument("--eager", action="store_true", help="record no CUDA graphs")
    parser.add_argument("--backbone", default=None, help="of the projected discriminator")
    parser.add_argument("--batch-size", type=int, help="over all ranks")
    parser.add_argument("--precision", choices=("bfloat16", "float32"))
    parser.add_argument("--steps", type=int, default=None, help="timed steps; their mean counts")
    parser.add_argument("--warmup", type=int, default=None)
    add_json(parser)
    args = parser.parse_args()
    args.steps = args.steps or (3 if args.quick else 20)
    args.warmup = args.warmup or (1 if args.quick else 5)
    args.backbone = args.backbone or ("tf_efficientnet_lite0" if args.quick else "vit_small_patch14_reg4_dinov2")
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    table, first = Table(COLUMNS), None
    for stage in args.stages:
        row = measure(args, stage)
        first = first or row["seconds_per_step"]
        if PartialState().is_main_process:
            table.add(row | {"cost": row["seconds_per_step"] / first})
    if PartialState().is_main_process:
        table.write(args.json, args.device)


if __name__ == "__main__":
    main()
