"""The fused kernels alone, and where the time of the networks goes, on a GPU.

python benchmarks/kernels.py              # bytes a second of each kernel, as a share of a large copy's
python benchmarks/kernels.py --profile    # milliseconds by kernel of encoding, decoding and a training step
python benchmarks/kernels.py --profile --device cpu --toy   # whether this script works
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from networks import copy_rate, inference, median_time, model, random_images
from table import Table, add_json
from torch import Tensor
from training_ways import training


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


TILES = ((8192, 4096, 8), (4096, 4096, 8), (4096, 2048, 4), (2048, 2048, 4), (2048, 1024, 4))


def rates() -> Iterator[dict[str, Any]]:
    """For each level at f8 and each tiling, the share of a copy's bytes a second."""
    from gsqtok.acceleration import fused_triton

    rate = copy_rate("cuda")
    print(f"copy: {rate / 1e12:.2f} TB/s")
    for shape in ((32, 128, 256, 256), (32, 256, 128, 128), (32, 256, 64, 64), (32, 512, 32, 32)):
        x = torch.randn(shape, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        for tile, sums, warps in TILES:
            fused_triton.TILE, fused_triton.SUMS_TILE, fused_triton.WARPS = tile, sums, warps
            row: dict[str, Any] = {"shape": str(shape), "tile": tile, "sums": sums, "warps": warps, "copy": rate}
            for name, (passes, run) in stages(x).items():
                run()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    run()
                row[name] = passes * x.nbytes / median_time(graph.replay, "cuda", 0.03) / rate
            yield row


def profiled(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The longest kernels of each task and way."""
    size, batch = (32, 2) if args.toy else (256, 32)
    tokenizer, images = model(args.factor, args.toy), random_images(batch, size, args.device)
    for way in args.ways:
        own, stack = inference(tokenizer, way, args.device)
        with stack:
            x = images.to(own.encoder.conv_in.weight.dtype)
            z = torch.randn(batch, own.config.latent_dim, *(size // args.factor,) * 2, device=args.device).to(x.dtype)
            yield from by_kernel("encode", way, lambda own=own, x=x: own.encoder(x), args.device)
            yield from by_kernel("decode", way, lambda own=own, z=z: own.decoder(z), args.device)
        yield from by_kernel("training", way, training(tokenizer, way, images, None, args.device), args.device)


def by_kernel(task: str, way: str, run: Callable[[], Any], device: str) -> Iterator[dict[str, Any]]:
    """The 22 longest kernels of one call, and all of them."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device == "cuda"
    for _ in range(3):
        run()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        run()
        if cuda:
            torch.cuda.synchronize()
    sort = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, sort))
    total = sum(getattr(event, sort) for event in events)
    where = {"task": task, "way": way}
    for event in events[:22]:
        value = getattr(event, sort)
        yield where | {"ms": value / 1e3, "share": value / total, "calls": event.count, "kernel": event.key[:90]}
    yield where | {"ms": total / 1e3, "share": 1.0, "kernel": "in all"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="time by kernel instead")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--factor", type=int, default=8, choices=(8, 16))
    parser.add_argument("--ways", nargs="+", default=["fused"], help="of throughput.py")
    parser.add_argument("--toy", action="store_true", help="tiny networks and images")
    add_json(parser)
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    if args.profile:
        columns = {"task": ("task", ""), "way": ("way", ""), "ms": ("ms", ".3f"), "share": ("share", ".1%")}
        columns |= {"calls": ("calls", "d"), "kernel": ("kernel", "")}
    else:
        columns = {"shape": ("shape", ""), "tile": ("tile", "d"), "sums": ("of sums", "d"), "warps": ("warps", "d")}
        columns |= {name: (name, ".2f") for name in ("norm", "gradient", "add", "interleave")}
    table = Table(columns)
    for row in profiled(args) if args.profile else rates():
        table.add(row)
    table.write(args.json, args.device)


if __name__ == "__main__":
    main()
