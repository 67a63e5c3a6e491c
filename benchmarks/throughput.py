"""Speed and memory of encoding, decoding and training, each way of running them beside the published one.

    python benchmarks/throughput.py                     # everything, on a GPU
    python benchmarks/throughput.py --quick             # f8, one batch, nothing compiled
    python benchmarks/throughput.py --sweep             # encode and decode over batches and sizes
    python benchmarks/throughput.py --quick --tasks gan # training against each discriminator
    python benchmarks/throughput.py --device cpu --toy  # whether this script works

Networks are the paper's (128 channels, 2 blocks a level, adaptive norm, depth-to-space) with random weights. Ways:
published  float32 weights, channels outermost, bfloat16 autocast: how the original trains and runs
layout     the same with channels innermost, without the fused stages
compiled   channels innermost, bfloat16 weights (training: autocast), torch.compile, without the fused stages
fused      `ImageTokenizer.optimize` (training: autocast), without CUDA graphs
graphs     the same from CUDA graphs
original   the modules of the original (flex_gen), run as published, where `--original` names a checkout of it
recompute  training: fused, graphs, and the residual blocks of the two largest levels recomputed in the backward pass

TFLOP/s counts what the published formula computes, whatever a way saves of it. `matrix` is that rate over the one of a
large bfloat16 matrix product in the same run. Times are medians; memory is the peak, weights and all.

`--sweep` sets the published way beside `graphs` at 256 px with batches of 1 to 128, and at 128 to 1,024 px with as many
pixels as 32 images of 256 px have. Task `gan` is `train+perceptual` and a discriminator's step, each way with the
same discriminator: PatchGAN, or heads on a frozen network, DINOv2 (the paper's) or EfficientNet-Lite, of random
weights. It runs eagerly, but for the frozen network in the ways from graphs. What it computes is not in TFLOP/s.

Task `tokens` says what a way of running does to tokens: the tokenizer inside the package on its demo images, against
float32: the share of equal tokens, and PSNR of the reconstruction. Time by kernel is in kernels.py.
"""

from __future__ import annotations

import argparse
import functools
import gc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import (
    MULTIPLIERS,
    SECONDS,
    copy_rate,
    flops,
    inference,
    matrix_rate,
    median_time,
    model,
    random_images,
    with_original,
)
from PIL import Image
from table import Table, add_json
from torch import Tensor
from training_ways import OPPONENTS, PerceptualLike, opponent, training

import gsqtok
from gsqtok import ImageTokenizer

SWEEP = [(256, 1), (256, 8), (256, 32), (256, 128), (128, 128), (512, 8), (1024, 2)]  # size, batch
TASKS = ("inference", "train", "train+perceptual", "gan", "tokens")
COLUMNS = {
    "task": ("task", ""),
    "factor": ("f", "d"),
    "size": ("px", "d"),
    "batch": ("batch", "d"),
    "way": ("way", ""),
    "images_per_second": ("images/s", ",.1f"),
    "ratio": ("of the first way", ".2f"),
    "tflops": ("TFLOP/s", ".1f"),
    "of_matrix": ("of matrix", ".1%"),
    "gib": ("GiB", ".1f"),
    "equal": ("equal tokens", ".2%"),
    "psnr": ("PSNR, dB", ".3f"),
}


def model_for(args: argparse.Namespace, way: str, factor: int) -> ImageTokenizer:
    return (args.originals if way == "original" else args.models)[factor]


def run_inference(args: argparse.Namespace, factor: int, size: int, batch: int, way: str) -> Iterator[dict[str, Any]]:
    images = random_images(batch, size, args.device)
    tokenizer, stack = inference(model_for(args, way, factor), way, args.device)
    with stack:
        weight = tokenizer.encoder.conv_in.weight
        grid = torch.randn(batch, size // factor, size // factor, tokenizer.config.latent_dim, device=args.device)
        sources = {
            "encode": (tokenizer.encoder, images.to(weight.dtype)),
            "decode": (tokenizer.decoder, grid.movedim(-1, 1).to(weight.dtype)),
        }
        for task, (network, x) in sources.items():
            if args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            if way == "original":
                run = functools.partial(network, x)
            else:
                run = functools.partial(tokenizer._run, network, x, 1, None, None)
            seconds = median_time(run, args.device, args.seconds)
            plain = args.models[factor].encoder if task == "encode" else args.models[factor].decoder
            yield row(args, task, factor, size, batch, way, seconds, flops(plain, x.shape))


def row(args: argparse.Namespace, task: str, factor: int, size: int, batch: int, way: str, seconds: float, count: int):
    rate = count / seconds
    return {
        "task": task,
        "factor": factor,
        "size": size,
        "batch": batch,
        "way": way,
        "images_per_second": batch / seconds,
        "tflops": rate / 1e12,
        "of_matrix": rate / args.matrix_rate,
        "gib": torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else None,
    }


def run_training(
    args: argparse.Namespace, factor: int, size: int, batch: int, way: str, task: str
) -> list[dict[str, Any]]:
    images = random_images(batch, size, args.device)
    perceptual = task != "train"
    network = PerceptualLike().to(args.device) if perceptual else None
    adversary = opponent(task.removeprefix("gan ")).to(args.device).train() if task.startswith("gan ") else None
    if args.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = training(model_for(args, way, factor), way, images, network, args.device, adversary)
    seconds = median_time(step, args.device, args.seconds)
    tokenizer = args.models[factor]
    latent = (batch, tokenizer.config.latent_dim, size // factor, size // factor)
    count = 3 * (flops(tokenizer.encoder, images.shape) + flops(tokenizer.decoder, latent))
    if perceptual:
        count += 3 * flops(PerceptualLike(), images.shape)  # twice forward, once backward to the images
    return [row(args, task, factor, size, batch, way, seconds, count)]


def run_agreement(args: argparse.Namespace, ways: list[str]) -> Iterator[dict[str, Any]]:
    folder = Path(gsqtok.__file__).parent / "demo_images"
    size = 64 if args.toy else 256
    images = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(file).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)))
            for file in sorted(folder.glob("*.png"))
        ]
    )
    images = (images.permute(0, 3, 1, 2).float() / 127.5 - 1).to(args.device)
    base = ImageTokenizer.from_pretrained().to(args.device)
    truth = base.encode(images)

    def psnr(found: Tensor) -> float:
        return float(10 * torch.log10(4 / (found.float() - images).square().mean((1, 2, 3))).mean())

    yield {"task": "tokens", "way": "float32", "equal": 1.0, "psnr": psnr(base.decode(truth))}
    for way in ways:
        tokenizer, stack = inference(base, way, args.device)
        with stack:
            for _ in range(3):  # the third comes from a CUDA graph
                tokens = tokenizer.encode(images)
                decoded = tokenizer.decode(tokens)
        equal = float((tokens == truth).float().mean())
        yield {"task": "tokens", "way": way, "equal": equal, "psnr": psnr(decoded)}


Case = tuple[str, Callable[[], Iterable[dict[str, Any]]]]  # what it is, and the rows of it


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Everything that is asked for, in the order of the table."""
    cuda = args.device == "cuda"
    ways = args.ways or ["published", "layout", *([] if args.quick else ["compiled"]), "fused", "graphs"]
    if args.sweep:
        ways = ["original" if args.original else "published", "graphs" if cuda else "fused"]
    elif args.original and "original" not in ways:
        ways = ["original", *ways]
    ways = [way for way in ways if cuda or way != "graphs"]
    train_ways = args.ways or [*(way for way in ways if way != "layout"), "recompute"]
    shapes = [(size, batch) for size in args.sizes for batch in args.batches]
    if args.sweep:
        shapes = [(32, 1), (64, 2)] if args.toy else SWEEP
    for factor in args.factors:
        for size, batch in shapes if args.sweep or "inference" in args.tasks else []:
            for way in ways:
                if way != "recompute":
                    yield way, functools.partial(run_inference, args, factor, size, batch, way)
        for size in [] if args.sweep else args.sizes:
            for batch in args.train_batches:
                for task in ("train", "train+perceptual", *(f"gan {name}" for name in args.discriminators)):
                    for way in train_ways if task.split()[0] in args.tasks else []:
                        yield f"{task} {way}", functools.partial(run_training, args, factor, size, batch, way, task)
    if "tokens" in args.tasks and not args.sweep:
        kept = [way for way in ways if way not in ("recompute", "original")]
        yield "tokens", functools.partial(run_agreement, args, kept)


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda")
    p.add_argument("--factors", type=int, nargs="+", default=[8, 16], choices=list(MULTIPLIERS))
    p.add_argument("--sizes", type=int, nargs="+", default=[256])
    p.add_argument("--batches", type=int, nargs="+", default=[1, 4, 32])
    p.add_argument("--train-batches", type=int, nargs="+", default=[32])
    p.add_argument("--ways", nargs="+", help="only these")
    p.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    p.add_argument("--discriminators", nargs="+", default=list(OPPONENTS), choices=list(OPPONENTS), help="of task gan")
    p.add_argument("--sweep", action="store_true", help="encode and decode over batches and sizes instead")
    p.add_argument("--quick", action="store_true", help="f8, batch 32, nothing compiled")
    p.add_argument("--toy", action="store_true", help="tiny networks and images")
    p.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN time its algorithms")
    p.add_argument("--original", metavar="CHECKOUT", help="of the original implementation: also its modules")
    add_json(p)
    args = p.parse_args()
    if args.quick:
        args.factors, args.batches = [8], [32]
    if args.toy:
        args.sizes, args.batches, args.train_batches = [32], [2], [2]
    args.seconds = 0.25 if args.sweep else SECONDS
    return args


def main() -> None:
    args = arguments()
    torch.backends.cudnn.benchmark = args.cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = False  # float32 is the truth here
    args.models = {factor: model(factor, args.toy) for factor in args.factors}
    if args.original:
        args.originals = {factor: with_original(plain, args.original) for factor, plain in args.models.items()}
    args.matrix_rate = matrix_rate(args.device)
    rates = {"matrix_tflops": args.matrix_rate / 1e12, "copy_tb": copy_rate(args.device) / 1e12}
    print("matrix product {matrix_tflops:.0f} TFLOP/s, copy {copy_tb:.2f} TB/s".format(**rates))
    table, first = Table(COLUMNS), {}
    for what, run in cases(args):
        try:
            for line in run():
                same = tuple(line.get(key) for key in ("task", "factor", "size", "batch"))
                rate = line.get("images_per_second")
                table.add(line | ({"ratio": rate / first.setdefault(same, rate)} if rate else {}))
        except torch.cuda.OutOfMemoryError:
            print(f"{what}: out of memory", flush=True)
        finally:
            torch.compiler.reset()
            gc.collect()
            if args.device == "cuda":
                torch.cuda.empty_cache()
    table.write(args.json, args.device, **rates)


if __name__ == "__main__":
    main()
