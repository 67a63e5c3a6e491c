"""What convolutions in eight bits could gain on a GPU: every 3x3 convolution of the paper's f8 networks as a product.

    python benchmarks/eight_bits_speed.py                     # on a GPU, about a minute
    python benchmarks/eight_bits_speed.py --device cpu --toy  # whether this script works

torch has no float8 convolution, only products: ``torch._scaled_mm`` (compute capability 8.9 and above) and, for int8,
``torch._int_mm``. For each 3x3 convolution with stride 1 but the first and the last, at M = B H W positions, K = 9 C
inputs and N filters, milliseconds of:
cudnn          the convolution in bfloat16, channels innermost, cuDNN's fastest algorithm: what is used today
bf16           the product alone, its M x K matrix of neighbours at hand
float8         likewise, with the tensor cores' fast accumulation: what a kernel that gathers on its way could reach
float8 exact   without the fast accumulation
float8 rows    with a scale for each row and each filter in place of two
int8           to int32
+gather        float8 with gathering the neighbours of an image that is in float8 already
+round         the same from a bfloat16 image with a known scale: all that torch offers today
The last lines sum this up over each network, and set it beside the time of the network as it runs today (`optimize`,
from CUDA graphs): what would be left of it with float8 in these convolutions and all else as it is.

Quality is `benchmarks/eight_bits.py`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from throughput import fusing, inference, median_time, model
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn
CALLS = 5  # in one CUDA graph, so that launching it does not count
Shape = tuple[int, int, int]  # channels, filters, pixels a side
COLUMNS = ("cudnn", "bf16", "float8", "float8 exact", "float8 rows", "int8", "+gather", "+round")


def shapes(network: nn.Module, x: tuple[int, ...]) -> Counter[Shape]:
    """How often each 3x3 convolution with stride 1 comes in a network, but for the first and the last."""
    found: Counter[Shape] = Counter()
    network = copy.deepcopy(network).to("meta")
    for name, conv in network.named_modules():
        inner = isinstance(conv, nn.Conv2d) and name not in ("conv_in", "conv_out")
        if inner and conv.kernel_size == (3, 3) and conv.stride == (1, 1):
            conv.register_forward_hook(
                lambda conv, _, out: found.update([(conv.in_channels, conv.out_channels, out.shape[3])])
            )
    with fusing(False), torch.no_grad():
        network(torch.empty(x, device="meta"))
    return found


def gather(x: Tensor) -> Tensor:
    """(B, H, W, C) to (B H W, 9 C): each position with its neighbours, zeros around; eight bytes at a time."""
    batch, height, width, _ = x.shape
    words = F.pad(x.view(torch.int64), (0, 0, 1, 1, 1, 1))
    n, strides = words.shape[3], words.stride()
    rows = words.as_strided((batch, height, width, 3, 3 * n), (*strides[:3], strides[1], 1))
    return rows.reshape(batch * height * width, 9 * n).view(x.dtype)


def contenders(shape: Shape, batch: int, device: str) -> dict[str, Callable[[], Tensor]]:
    """By column; all but int8 compute the same convolution, up to rounding."""
    channels, filters, side = shape
    x = torch.randn(batch, side, side, channels, device=device, dtype=torch.bfloat16)
    weight = torch.randn(filters, 3, 3, channels, device=device, dtype=torch.bfloat16) / math.sqrt(9 * channels)
    image, kernel = x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2)  # channels innermost
    flat = weight.flatten(1)
    scale = 448 / x.abs().amax().float()
    weight_scale = 448 / weight.abs().amax().float()
    back, weight_back = 1 / scale, 1 / weight_scale
    flat8 = (flat * weight_scale).to(FLOAT8)

    def rounded() -> Tensor:
        return (x * scale).clamp(-448, 448).to(FLOAT8)

    x8 = rounded()
    rows, rows8 = gather(x), gather(x8)
    each_row, each_filter = back.expand(len(rows8), 1).contiguous(), weight_back.expand(1, filters).contiguous()
    integers, weights = (
        torch.randint(-127, 128, like.shape, device=device, dtype=torch.int8) for like in (rows8, flat)
    )

    def product(a: Tensor, fast: bool = True, a_scale: Tensor = back, b_scale: Tensor = weight_back) -> Tensor:
        return torch._scaled_mm(
            a, flat8.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16, use_fast_accum=fast
        )

    return {
        "cudnn": lambda: F.conv2d(image, kernel, padding=1),
        "bf16": lambda: rows @ flat.t(),
        "float8": lambda: product(rows8),
        "float8 exact": lambda: product(rows8, fast=False),
        "float8 rows": lambda: product(rows8, a_scale=each_row, b_scale=each_filter),
        "int8": lambda: torch._int_mm(integers, weights.t()),
        "+gather": lambda: product(gather(x8)),
        "+round": lambda: product(gather(rounded())),
    }


def milliseconds(run: Callable[[], Tensor], device: str) -> float:
    run()
    if device != "cuda":
        return 1e3 * median_time(run, device, 0)
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            run()
    return 1e3 * median_time(graph.replay, device, 0.05) / CALLS


def measure(shape: Shape, batch: int, device: str, said: set[str]) -> dict[str, float]:
    """Milliseconds by column; NaN for what this torch or this device lacks, which a line says once."""
    found: dict[str, float] = {}
    truth: Tensor | None = None
    for name, run in contenders(shape, batch, device).items():
        try:
            if name != "int8":
                out = run() if name != "cudnn" else run().permute(0, 2, 3, 1)
                out = out.float().reshape(batch, -1)
                truth = out if truth is None else truth
                error = float((out - truth).square().mean().sqrt() / truth.square().mean().sqrt())
                if not error < 0.1:
                    raise RuntimeError(f"computes something else: relative error {error:.3g}")
                del out
            found[name] = milliseconds(run, device)
        except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
            reason = f"{name}: left out, {' '.join(str(error).split())[:200]}"
            if reason not in said:
                print(reason, flush=True)
            said.add(reason)
            found[name] = math.nan
    return found


def line(title: str, values: dict[str, float]) -> str:
    return f"{title:28}" + "".join(f"{values[name]:>13.3f}" for name in COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--toy", action="store_true", help="tiny networks and images")
    parser.add_argument("--json", help="also write the results to this file")
    args = parser.parse_args()
    if args.toy:
        args.batch, args.size = 1, 32
    torch.backends.cudnn.benchmark = True
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, batch {args.batch}, {args.size} px; ms")
    tokenizer = model(8, args.toy)
    images = (args.batch, 3, args.size, args.size)
    latent = (args.batch, tokenizer.config.latent_dim, args.size // 8, args.size // 8)
    counts = {"encoder": shapes(tokenizer.encoder, images), "decoder": shapes(tokenizer.decoder, latent)}

    print(f"{'channels to filters, side':28}" + "".join(f"{name:>13}" for name in COLUMNS))
    times: dict[Shape, dict[str, float]] = {}
    said: set[str] = set()
    for shape in sorted(set().union(*counts.values()), key=lambda shape: -shape[2]):
        times[shape] = measure(shape, args.batch, args.device, said)
        print(line("{} to {}, {}".format(*shape), times[shape]), flush=True)
        if args.device == "cuda":
            torch.cuda.empty_cache()

    fast, stack = inference(tokenizer, "graphs" if args.device == "cuda" else "fused", args.device)
    sums: dict[str, dict[str, float]] = {}
    with stack:
        for side, x in {"encoder": images, "decoder": latent}.items():
            network = getattr(fast, side)
            source = torch.randn(x, device=args.device, dtype=network.conv_in.weight.dtype)
            whole = 1e3 * median_time(
                lambda network=network, source=source: fast._run(network, source, 1, None, None), args.device
            )
            total = {c: sum(n * times[shape][c] for shape, n in counts[side].items()) for c in COLUMNS}
            sums[side] = total | {"whole": whole}
            print(line(f"{side}, {sum(counts[side].values())} convolutions", total))
            print(line("  as a whole, like this", {c: whole - total["cudnn"] + total[c] for c in COLUMNS}))
    if args.json:
        rows = [{"shape": shape, "counts": {n: c[shape] for n, c in counts.items()}, **t} for shape, t in times.items()]
        Path(args.json).write_text(
            json.dumps({"device": name, "torch": torch.__version__, "rows": rows, "sums": sums}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
