"""What fresh memory costs PyTorch on a CPU: page faults with glibc's defaults, and with memory that is kept.

    OMP_NUM_THREADS=1 python benchmarks/heap.py

Each way has a process of its own; `kept` calls `memory.keep_freed_memory` first. Times are processor
time, the median run; `system` is the system's share of it, which fills new pages with zeros; `faults` are pages.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from cpu import random_images
from memory import keep_freed_memory
from table import Table, add_json

from gsqtok import ImageTokenizer

COLUMNS = {
    "work": ("", ""),
    "way": ("way", ""),
    "ms": ("ms", ",.0f"),
    "system_ms": ("system, ms", ",.0f"),
    "faults": ("faults", ",d"),
    "peak_mib": ("peak of the process, MiB", ",.0f"),
}


def works() -> dict[str, Callable[[], Any]]:
    """What is measured, by name; each allocates what it returns."""
    tokenizer, images = ImageTokenizer.from_pretrained().eval(), random_images(1, 256)
    tokens = tokenizer.encode(images)
    convolution = torch.nn.Conv2d(128, 128, 3, padding=1).requires_grad_(False)
    maps = torch.randn(2, 128, 256, 256).contiguous(memory_format=torch.channels_last)
    training = ImageTokenizer.from_pretrained().train()

    def step() -> None:
        out = training(images)
        (out.reconstruction.square().mean() + out.quantizer_loss).backward()

    return {
        "SiLU of 32 MiB": lambda: torch.nn.functional.silu(maps[:1]),
        "SiLU of 64 MiB": lambda: torch.nn.functional.silu(maps),
        "3x3 convolution to 32 MiB": lambda: convolution(maps[:1]),
        "3x3 convolution to 64 MiB": lambda: convolution(maps),
        "encode, 256 px": lambda: tokenizer.encode(images),
        "decode, 256 px": lambda: tokenizer.decode(tokens),
        "forward and backward, 256 px": step,
    }


def serve(pipe: Connection, kept: bool) -> None:
    """Run what is asked for by name, and answer with its costs."""
    if kept:
        keep_freed_memory()
    found = works()
    pipe.send(list(found))
    while (name := pipe.recv()) is not None:
        before = resource.getrusage(resource.RUSAGE_SELF)
        found[name]()
        after = resource.getrusage(resource.RUSAGE_SELF)
        system = after.ru_stime - before.ru_stime
        pipe.send(
            (after.ru_utime - before.ru_utime + system, system, after.ru_minflt - before.ru_minflt, after.ru_maxrss)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    add_json(parser)
    args = parser.parse_args()
    context, pipes = multiprocessing.get_context("spawn"), {}
    for way in ("default", "kept"):
        pipes[way], end = context.Pipe()
        context.Process(target=serve, args=(end, way == "kept"), daemon=True).start()
    names, _ = [pipe.recv() for pipe in pipes.values()]
    runs: dict[tuple[str, str], list[tuple[float, float, int, int]]] = {}
    for _ in range(args.rounds):
        for name in names:
            for way, pipe in pipes.items():
                pipe.send(name)
                runs.setdefault((name, way), []).append(pipe.recv())
    table = Table(COLUMNS)
    for (name, way), results in runs.items():
        seconds, system, faults, peak = sorted(results[1:])[(len(results) - 1) // 2]  # the first allocates in any case
        row = {"work": name, "way": way, "ms": 1e3 * seconds, "system_ms": 1e3 * system}
        table.add(row | {"faults": faults, "peak_mib": peak / 1024})
    for pipe in pipes.values():
        pipe.send(None)
    table.write(args.json, "cpu")


if __name__ == "__main__":
    main()
