"""Speed and memory of encoding, decoding and training, each way of running them beside the published one.

    python benchmarks/throughput.py                     # everything, on a GPU
    python benchmarks/throughput.py --quick             # f8, one batch, nothing compiled
    python benchmarks/throughput.py --sweep             # encode and decode over batches and sizes
    python benchmarks/throughput.py --quick --tasks gan # training against each discriminator
    python benchmarks/throughput.py --profile           # time by kernel, of the fast ways
    python benchmarks/throughput.py --kernels           # the fused kernels alone, bytes a second
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

The last table says what a way of running does to tokens: the tokenizer inside the package on its demo images, against
float32: the share of equal tokens, and PSNR of the reconstruction.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gsqtok import ImageTokenizer
from gsqtok.acceleration import accelerate, recompute
from gsqtok.tokenizer import TokenizerConfig

if TYPE_CHECKING:
    from gsqtok.training.adversarial import DiscriminatorObjective

MULTIPLIERS = {8: (1, 2, 2, 4), 16: (1, 1, 2, 2, 4)}
SECONDS = 0.7  # for one median
SWEEP = [(256, 1), (256, 8), (256, 32), (256, 128), (128, 128), (512, 8), (1024, 2)]  # size, batch
OPPONENTS = {"patch": None, "efficientnet": "tf_efficientnet_lite0", "dinov2": "vit_small_patch14_reg4_dinov2"}


def model(factor: int, toy: bool) -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(
        TokenizerConfig(
            channels=32 if toy else 128,
            multipliers=MULTIPLIERS[factor],
            encoder_blocks=1 if toy else 2,
            decoder_blocks=1 if toy else 2,
            adaptive_norm=True,
            depth_to_space=True,
        )
    )


def with_original(tokenizer: ImageTokenizer, checkout: str) -> ImageTokenizer:
    """A copy whose encoder and decoder are the original implementation's, of the same configuration, random weights."""
    import importlib
    import sys

    sys.path.insert(0, checkout)
    original = importlib.import_module("flex_gen.autoencoders.flexTokenizer.flexTokenizer")
    config = tokenizer.config
    levels = len(config.multipliers)
    networks = original.FlexTokenizer(
        hidden_channels=config.channels,
        channel_multipliers=config.multipliers,
        encoder_layer_configs=(config.encoder_blocks,) * levels + (config.encoder_middle_blocks,),
        decoder_layer_configs=(config.decoder_blocks,) * levels + (config.decoder_middle_blocks,),
        embedding_dim=config.latent_dim,
        use_adaptive_norm=config.adaptive_norm,
        use_learnable_up_down_sample=config.depth_to_space,
        quantizer_config={"quantize_type": "vq", "embed_dim": config.latent_dim, "num_embed": 16},
    )
    tokenizer = copy.deepcopy(tokenizer)
    for name in ("encoder", "decoder"):
        ours, theirs = getattr(tokenizer, name), getattr(networks, name)
        counts = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
        if counts[0] != counts[1]:
            raise ValueError(f"the {name} in {checkout} has {counts[1]:,} parameters, this one {counts[0]:,}")
        setattr(tokenizer, name, theirs)
    return tokenizer


def model_for(args: argparse.Namespace, way: str, factor: int) -> ImageTokenizer:
    return (args.originals if way == "original" else args.models)[factor]


def random_images(batch: int, size: int, device: str) -> Tensor:
    """Smooth random images."""
    return F.interpolate(torch.rand(batch, 3, 16, 16, device=device) * 2 - 1, (size, size), mode="bilinear")


def median_time(run: Callable[[], Any], device: str, seconds: float = SECONDS) -> float:
    for _ in range(3):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def flops(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Of one forward pass of the plain formula, for a network that nothing has been done to."""
    network = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(shape, device="meta"))
    return counter.get_total_flops()


def matrix_rate(device: str) -> float:
    """Multiply-adds count as two; a square product in bfloat16."""
    n = 8192 if device == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / median_time(lambda: a @ b, device)


def copy_rate(device: str) -> float:
    """Bytes read and written a second, of a large copy."""
    x = torch.randn(2**28 if device == "cuda" else 2**20, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / median_time(lambda: y.copy_(x), device)


# Inference: a way prepares a tokenizer and returns what turns it off again.


def inference(tokenizer: ImageTokenizer, way: str, device: str) -> tuple[ImageTokenizer, contextlib.ExitStack]:
    tokenizer = copy.deepcopy(tokenizer).to(device).eval()
    stack = contextlib.ExitStack()
    stack.enter_context(torch.no_grad())
    if way in ("original", "published", "layout"):
        stack.enter_context(torch.autocast(device, torch.bfloat16))
    if way == "layout":
        tokenizer.to(memory_format=torch.channels_last)
    if way in ("compiled", "fused", "graphs"):
        tokenizer.optimize(torch.bfloat16, cuda_graphs=way == "graphs")
    if way == "compiled":
        tokenizer.encoder.compile()
        tokenizer.decoder.compile()
    accelerate(tokenizer, enabled=way in ("fused", "graphs"))
    return tokenizer, stack


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


# Training


class PerceptualLike(nn.Module):
    """A frozen VGG-like network: the load of a perceptual term without its weights."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3)):
            for _ in range(count):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
                before = channels
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers[:-1]).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def opponent(name: str) -> DiscriminatorObjective:
    from gsqtok.networks.backbone import random_backbone
    from gsqtok.training.adversarial import DiscriminatorObjective
    from gsqtok.training.config import AdversarialConfig

    backbone = None if OPPONENTS[name] is None else random_backbone(OPPONENTS[name], embedding=True)
    config = AdversarialConfig(discriminator="patch" if backbone is None else "projected")
    return DiscriminatorObjective(config, backbone)


def training(
    tokenizer: ImageTokenizer,
    way: str,
    images: Tensor,
    perceptual: PerceptualLike | None,
    device: str,
    adversary: DiscriminatorObjective | None = None,
) -> Callable[[], Any]:
    tokenizer = copy.deepcopy(tokenizer).to(device).train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), fused=device == "cuda")
    judge = None if adversary is None else adversary.discriminator
    if judge is not None:
        from gsqtok.losses import generator_loss
    judges = None if judge is None else torch.optim.AdamW(judge.parameters(), fused=device == "cuda")
    shown = images if way in ("original", "published") else images.contiguous(memory_format=torch.channels_last)
    accelerate(tokenizer, enabled=way in ("fused", "graphs", "recompute"))
    if way not in ("original", "published"):
        tokenizer.to(memory_format=torch.channels_last)
        if perceptual is not None:
            perceptual.to(memory_format=torch.channels_last)
    if way == "recompute":
        recompute(tokenizer, levels=2)
    if way == "compiled":
        tokenizer.encoder.compile()
        tokenizer.decoder.compile()
    if way in ("graphs", "recompute") and device == "cuda":
        from gsqtok.training.graphs import record, record_backbone

        record(tokenizer, images, torch.bfloat16)
        for backbone in (perceptual, getattr(judge, "backbone", None)):  # as the trainer does
            if backbone is not None:
                record_backbone(backbone, images, torch.bfloat16)

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            out = tokenizer(images)
            loss = F.mse_loss(out.reconstruction.float(), images) + out.quantizer_loss
            if perceptual is not None:
                with torch.no_grad():
                    target = perceptual(images)
                loss = loss + F.mse_loss(perceptual(out.reconstruction.float()).float(), target.float())
            if judge is not None:
                judge.requires_grad_(False)
                loss = loss + adversary.config.weight * generator_loss(judge(out.reconstruction), "non_saturating")
                judge.requires_grad_(True)
        loss.backward()
        if judge is not None:
            with torch.autocast(device, torch.bfloat16):
                verdict, _ = adversary(shown, out.reconstruction.detach(), False)
            verdict.backward()
            nn.utils.clip_grad_norm_(judge.parameters(), 2.0)
            judges.step()
            judges.zero_grad(set_to_none=True)
        nn.utils.clip_grad_norm_(tokenizer.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def run_training(args: argparse.Namespace, factor: int, size: int, batch: int, way: str, task: str):
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
    return row(args, task, factor, size, batch, way, seconds, count)


# What it does to tokens


def run_agreement(args: argparse.Namespace, ways: list[str]) -> Iterator[dict[str, Any]]:
    from pathlib import Path

    import numpy as np
    from PIL import Image

    import gsqtok

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


# The kernels alone


def stages(x: Tensor) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Each with how often it must read or write a tensor of this size."""
    from gsqtok.acceleration import fused_triton as kernels

    batch, channels, side, _ = x.shape
    y, grad = torch.randn_like(x), torch.randn_like(x)
    weight, bias = torch.randn(channels, device="cuda"), torch.randn(channels, device="cuda")
    four = torch.randn(batch, 4 * channels, side // 2, side // 2, device="cuda", dtype=x.dtype)
    four = four.contiguous(memory_format=torch.channels_last)
    norm = (weight, bias, 32, 1e-5, True, None, x.dtype)
    out = kernels.GroupNorm.apply(x.detach().requires_grad_(), *norm)
    return {
        "norm": (3, lambda: kernels.GroupNorm.apply(x, *norm)),
        "gradient": (5, lambda: torch.autograd.backward(out, grad, retain_graph=True)),
        "add": (3, lambda: kernels.Add.apply(x, y, bias)),
        "interleave": (2, lambda: kernels.Interleave.apply(four, bias.repeat(4), 0)),
    }


def run_kernels() -> None:
    from gsqtok.acceleration import fused_triton

    rate = copy_rate("cuda")
    print(f"copy: {rate / 1e12:.2f} TB/s\nshape, elements a tile, of sums, warps: share of the copy's bytes a second")
    for shape in ((32, 128, 256, 256), (32, 256, 128, 128), (32, 256, 64, 64), (32, 512, 32, 32)):  # levels at f8
        x = torch.randn(shape, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        for tile, sums, warps in ((8192, 4096, 8), (4096, 4096, 8), (4096, 2048, 4), (2048, 2048, 4), (2048, 1024, 4)):
            fused_triton.TILE, fused_triton.SUMS_TILE, fused_triton.WARPS = tile, sums, warps
            shares = []
            for name, (passes, run) in stages(x).items():
                run()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    run()
                seconds = median_time(graph.replay, "cuda", 0.03)
                shares.append(f"{name} {passes * x.nbytes / seconds / rate:5.2f}")
            print(f"{shape!s:20} {tile:6} {sums:5} {warps:3}  " + "  ".join(shares), flush=True)


def run_profile(args: argparse.Namespace, factor: int, size: int, batch: int) -> None:
    from torch.profiler import ProfilerActivity, profile

    cuda = args.device == "cuda"
    activities = [ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]
    sort = "self_device_time_total" if cuda else "self_cpu_time_total"
    images = random_images(batch, size, args.device)

    def show(title: str, run: Callable[[], Any]) -> None:
        for _ in range(3):
            run()
        with profile(activities=activities) as profiler:
            run()
            if cuda:
                torch.cuda.synchronize()
        print(f"\n{title}, batch {batch}")
        events = [e for e in profiler.key_averages() if getattr(e, sort) > 0]
        total = sum(getattr(e, sort) for e in events)
        for event in sorted(events, key=lambda e: -getattr(e, sort))[:22]:
            value = getattr(event, sort)
            print(f"{value / 1e3:9.3f} ms {value / total:6.1%} {event.count:5}x  {event.key[:110]}")
        print(f"{total / 1e3:9.3f} ms in all")

    for way in args.ways or ["fused"]:
        tokenizer, stack = inference(args.models[factor], way, args.device)
        with stack:
            x = images.to(tokenizer.encoder.conv_in.weight.dtype)
            show(f"encode f{factor}, {way}", lambda tokenizer=tokenizer, x=x: tokenizer.encoder(x))
            z = torch.randn(batch, tokenizer.config.latent_dim, *(size // factor,) * 2, device=args.device)
            z = z.to(x.dtype)
            show(f"decode f{factor}, {way}", lambda tokenizer=tokenizer, z=z: tokenizer.decoder(z))
        step = training(args.models[factor], way, images, None, args.device)
        show(f"training f{factor}, {way}", step)
        del tokenizer, step


def table(line: dict[str, Any]) -> str:
    if line["task"] == "tokens":
        return f"tokens   {line['way']:10} equal {line['equal']:8.4%}   PSNR {line['psnr']:.3f} dB"
    memory = "" if line["gib"] is None else f"{line['gib']:6.1f} GiB"
    return (
        f"{line['task']:16} f{line['factor']:<2} {line['size']:4} px  batch {line['batch']:<3} {line['way']:10}"
        f"{line['images_per_second']:9.1f} img/s {line['tflops']:7.1f} TFLOP/s  {line['of_matrix']:5.1%} of matrix"
        f"  {memory}"
    )


def sweep_line(lines: list[dict[str, Any]], factor: int, size: int, batch: int, ways: list[str]) -> str:
    """One case of the sweep: published and ours, of encoding and of decoding."""
    text = f"f{factor:<3} {size:>5} {batch:>6}"
    for task in ("encode", "decode"):
        case = {"task": task, "factor": factor, "size": size, "batch": batch}
        found = {line["way"]: line for line in lines if case.items() <= line.items()}
        before, now = (found.get(way) for way in ways)
        for line in (before, now):
            text += f"{line['images_per_second']:>11,.1f}" if line else f"{'-':>11}"
        ratio = f"{now['images_per_second'] / before['images_per_second']:.2f}x" if before and now else "-"
        share = f"{now['of_matrix']:.1%}" if now else "-"
        memory = "/".join(f"{line['gib']:.1f}" if line and line["gib"] is not None else "-" for line in (before, now))
        text += f"{ratio:>7} {share:>7} {memory:>10}"
    return text


def sweep_head() -> str:
    columns = "".join(
        f"{f'{task}, img/s':>11}{'ours':>11}{'ratio':>7} {'matrix':>7} {'GiB':>10}" for task in ("enc", "dec")
    )
    return f"{'':4} {'px':>5} {'batch':>6}{columns}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda")
    p.add_argument("--factors", type=int, nargs="+", default=[8, 16], choices=list(MULTIPLIERS))
    p.add_argument("--sizes", type=int, nargs="+", default=[256])
    p.add_argument("--batches", type=int, nargs="+", default=[1, 4, 32])
    p.add_argument("--train-batches", type=int, nargs="+", default=[32])
    p.add_argument("--ways", nargs="+", help="only these")
    p.add_argument(
        "--tasks",
        nargs="+",
        default=["inference", "train", "train+perceptual", "gan", "tokens"],
        choices=["inference", "train", "train+perceptual", "gan", "tokens"],
    )
    p.add_argument("--discriminators", nargs="+", default=list(OPPONENTS), choices=list(OPPONENTS), help="of task gan")
    p.add_argument("--sweep", action="store_true", help="encode and decode over batches and sizes instead")
    p.add_argument("--quick", action="store_true", help="f8, batch 32, nothing compiled")
    p.add_argument("--toy", action="store_true", help="tiny networks and images")
    p.add_argument("--profile", action="store_true", help="time by kernel instead")
    p.add_argument("--kernels", action="store_true", help="the fused kernels alone instead")
    p.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN time its algorithms")
    p.add_argument(
        "--original", metavar="CHECKOUT", help="of the original implementation's repository: also its modules"
    )
    p.add_argument("--json", help="also write the rows to this file")
    args = p.parse_args()
    if args.quick:
        args.factors, args.batches = [8], [32]
    if args.toy:
        args.sizes, args.batches, args.train_batches = [32], [2], [2]
    args.seconds = 0.25 if args.sweep else SECONDS
    torch.backends.cudnn.benchmark = args.cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = False  # float32 is the truth here
    if args.kernels:
        return run_kernels()
    args.models = {factor: model(factor, args.toy) for factor in args.factors}
    if args.original:
        args.originals = {factor: with_original(plain, args.original) for factor, plain in args.models.items()}
    if args.profile:
        return run_profile(args, args.factors[0], args.sizes[0], args.batches[-1])

    args.matrix_rate = matrix_rate(args.device)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}: matrix product {args.matrix_rate / 1e12:.0f} TFLOP/s, "
          f"copy {copy_rate(args.device) / 1e12:.2f} TB/s")  # fmt: skip
    ways = args.ways or ["published", "layout", *([] if args.quick else ["compiled"]), "fused", "graphs"]
    if args.original and "original" not in ways:
        ways.insert(0, "original")
    if args.device != "cuda":
        ways = [way for way in ways if way != "graphs"]
    train_ways = args.ways or [*(way for way in ways if way != "layout"), "recompute"]
    lines: list[dict[str, Any]] = []

    def tell(line: dict[str, Any]) -> None:
        lines.append(line)
        if not args.sweep:
            print(table(line), flush=True)

    def attempt(run: Callable[[], Any], what: str) -> None:
        try:
            for line in run():
                tell(line)
        except torch.cuda.OutOfMemoryError:
            print(f"{what}: out of memory", flush=True)
        finally:
            torch.compiler.reset()
            gc.collect()
            if args.device == "cuda":
                torch.cuda.empty_cache()

    if args.sweep:
        args.tasks = []
        ways = ["original" if args.original else "published", "graphs" if args.device == "cuda" else "fused"]
        print(sweep_head(), flush=True)
    for factor in args.factors if args.sweep else []:
        for size, batch in [(32, 1), (64, 2)] if args.toy else SWEEP:
            for way in ways:
                what = f"f{factor} {size} px batch {batch} {way}"
                attempt(lambda f=factor, s=size, b=batch, w=way: run_inference(args, f, s, b, w), what)
            print(sweep_line(lines, factor, size, batch, ways), flush=True)
    for factor in [] if args.sweep else args.factors:
        for size in args.sizes:
            for batch in args.batches if "inference" in args.tasks else []:
                for way in [way for way in ways if way != "recompute"]:
                    attempt(lambda f=factor, s=size, b=batch, w=way: run_inference(args, f, s, b, w), way)
            for batch in args.train_batches:
                for task in ("train", "train+perceptual", *(f"gan {name}" for name in args.discriminators)):
                    for way in train_ways if task.split()[0] in args.tasks else []:
                        attempt(
                            lambda f=factor, s=size, b=batch, w=way, t=task: [run_training(args, f, s, b, w, t)],
                            f"{task} {way}",
                        )
    if "tokens" in args.tasks:
        attempt(lambda: run_agreement(args, [way for way in ways if way not in ("recompute", "original")]), "tokens")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"device": name, "torch": torch.__version__, "matrix_rate": args.matrix_rate, "rows": lines}, file
            )


if __name__ == "__main__":
    main()
