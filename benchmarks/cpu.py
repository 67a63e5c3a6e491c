"""Encoding and decoding on a CPU, every way of running them beside the plain one: speed, memory and what tokens become.

    python benchmarks/cpu.py                      # the tokenizer inside the package, 256 px, batch 1 and 8, one thread
    python benchmarks/cpu.py runs/mine --size 512 --threads 8 --ways plain default compiled

plain       float32, channels outermost, PyTorch's own operators: the truth
layout      the same, channels innermost
default     `ImageTokenizer.encode` and `decode`; `optimize()` differs from it by the weights' layout only
heap        `default` after `memory.keep_freed_memory`
optimized   that
compiled    both networks compiled (inductor), channels innermost
onnx        `gsqtok export` in onnxruntime
autocast    `plain` under bfloat16 autocast; `autocast+` `default` under it
bf16        `plain` with bfloat16 weights of the convolutions; `bf16+` `optimize(torch.bfloat16)`

Each way has a process of its own, and they take turns: a round runs every way once. Times are processor time of all
threads of a process, the least of all rounds, so that other programs disturb little; a way that takes 4 times as long
as `plain` runs in the first round only. Setting up includes loading, compiling or exporting, and a first run. Memory is
the peak resident memory of the runs after that, beyond the process with the tokenizer loaded. Tokens, reconstructions
and images (of the truth's tokens) are compared with `plain`.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from memory import keep_freed_memory
from table import Table, add_json
from tiled import mosaic
from torch import Tensor, nn

from gsqtok import ImageTokenizer
from gsqtok.acceleration import accelerate, cpu

WAYS = ("plain", "layout", "default", "heap", "optimized", "compiled", "onnx", "autocast", "autocast+", "bf16", "bf16+")
SLOW = 4  # times plain's time
COLUMNS = {
    "batch": ("batch", "d"),
    "way": ("way", ""),
    "encode": ("encode, images/s", ".2f"),
    "decode": ("decode, images/s", ".2f"),
    "peak_mib": ("peak, MiB", ",.0f"),
    "setup_s": ("set up, s", ".0f"),
    "equal": ("equal tokens", ".3%"),
    "psnr": ("PSNR, dB", "+.4f"),
    "difference": ("images within", ".1e"),
}
Call = Callable[[Tensor], Tensor]


def random_images(batch: int, size: int) -> Tensor:
    """(batch, 3, size, size) in [-1, 1], at most 16 of them."""
    rows = mosaic(4 * size)[0].unfold(1, size, size).unfold(2, size, size)
    return rows.permute(1, 2, 0, 3, 4).flatten(0, 1)[:batch].contiguous()


def prepare(model: str, way: str, threads: int) -> tuple[Call, Call]:
    """Encoding and decoding in this way."""
    if way == "heap":
        keep_freed_memory()
    tokenizer = ImageTokenizer.from_pretrained(model or None).eval()
    if way == "onnx":
        return exported(tokenizer, threads)
    if way in ("plain", "layout", "autocast", "bf16"):
        accelerate(tokenizer, enabled=False)
    if way in ("plain", "autocast", "bf16"):
        cpu.run = lambda network, x, pixels: network(x.contiguous())
    if way == "layout":
        cpu.run = lambda network, x, pixels: network(x.contiguous(memory_format=torch.channels_last))
    if way == "bf16":
        for module in tokenizer.modules():
            if isinstance(module, nn.Conv2d):
                module.bfloat16()
        tokenizer.encoder.conv_out.float()
    if way in ("optimized", "compiled", "bf16+"):
        tokenizer.optimize(torch.bfloat16 if way == "bf16+" else None)
    if way == "compiled":
        tokenizer.encoder.compile()
        tokenizer.decoder.compile()
    if way.startswith("autocast"):
        autocast = torch.autocast("cpu", torch.bfloat16)
        return autocast(tokenizer.encode), autocast(tokenizer.decode)
    return tokenizer.encode, tokenizer.decode


def exported(tokenizer: ImageTokenizer, threads: int) -> tuple[Call, Call]:
    import onnxruntime

    from gsqtok.export.export import export

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        export(tokenizer, folder)
        encoder, decoder = (
            onnxruntime.InferenceSession(Path(folder) / name, options, providers=["CPUExecutionProvider"])
            for name in ("encoder.onnx", "decoder.onnx")
        )
    return (
        lambda images: torch.from_numpy(encoder.run(["tokens"], {"images": images.numpy()})[0]),
        lambda tokens: torch.from_numpy(decoder.run(["images"], {"tokens": tokens.numpy()})[0]),
    )


def resident(kind: str) -> float:
    """MiB of this process on Linux: VmRSS now, VmHWM at most since the last ``forget_peak``."""
    values = dict(entry.split(":", 1) for entry in Path("/proc/self/status").read_text().splitlines())
    return int(values[kind].split()[0]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def serve(pipe: Connection, model: str, way: str, threads: int, batch: int, size: int) -> None:
    """One way in a process of its own: answers with seconds and memory; to the truth's tokens with results, too."""
    torch.set_num_threads(threads)
    images = random_images(batch, size)
    start = time.perf_counter()
    ImageTokenizer.from_pretrained(model or None)
    before = resident("VmRSS")
    encode, decode = prepare(model, way, threads)
    decode(encode(images if way == "compiled" else images[:1, :, :64, :64].contiguous()))
    pipe.send(time.perf_counter() - start)
    forget_peak()
    while (command := pipe.recv()) is not None:
        begin = time.process_time()
        tokens = encode(images)
        middle = time.process_time()
        own = decode(tokens)
        end = time.process_time()
        pipe.send((middle - begin, end - middle, resident("VmHWM") - before))
        if isinstance(command, np.ndarray):  # not tensors, which would be sent as shared memory
            truth = torch.from_numpy(command)
            image = decode(truth) if truth.numel() else own
            pipe.send([x.contiguous().numpy() for x in (tokens, own.float(), image.float())])


def measure(args: argparse.Namespace, batch: int, table: Table) -> None:
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    setup: dict[str, float] = {}
    best: dict[str, tuple[float, float]] = {}
    memory: dict[str, float] = {}
    first: dict[str, list[Tensor]] = {}
    truth = np.empty(0, dtype=np.int64)
    with contextlib.ExitStack() as stack:
        for way in args.ways:
            pipes[way], end = context.Pipe()
            process = context.Process(
                target=serve, args=(end, args.model, way, args.threads, batch, args.size), daemon=True
            )
            process.start()
            stack.callback(process.join)
            stack.callback(pipes[way].send, None)
            setup[way] = pipes[way].recv()
        for number in range(args.rounds):
            for way in args.ways:
                if number and sum(best[way]) > SLOW * sum(best["plain"]):
                    continue
                pipes[way].send("again" if number else truth)
                *seconds, memory[way] = pipes[way].recv()
                best[way] = tuple(min(pair) for pair in zip(seconds, best.get(way, seconds), strict=True))
                if not number:
                    results = pipes[way].recv()
                    first[way] = [torch.from_numpy(value) for value in results]
                    truth = first["plain"][0].numpy()
    images = random_images(batch, args.size)

    def psnr(reconstruction: Tensor) -> float:
        return float((10 * torch.log10(4 / (reconstruction - images).square().mean((1, 2, 3)))).mean())

    tokens, reconstruction, _ = first["plain"]
    for way in args.ways:
        found, own, image = first[way]
        encode, decode = (batch / seconds for seconds in best[way])
        equal = float((found == tokens).double().mean())
        row = {"batch": batch, "way": way, "encode": encode, "decode": decode, "peak_mib": memory[way]}
        row |= {"setup_s": setup[way], "equal": equal, "psnr": psnr(own) - psnr(reconstruction)}
        table.add(row | {"difference": float((image - reconstruction).abs().max())})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    add_json(parser)
    args = parser.parse_args()
    if args.ways[0] != "plain":
        args.ways.insert(0, "plain")
    torch.set_num_threads(args.threads)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    kinds = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {name} " in flags]
    table = Table(COLUMNS)
    for batch in args.batches:
        measure(args, batch, table)
    table.write(args.json, "cpu", size=args.size, instructions=kinds)


if __name__ == "__main__":
    main()
