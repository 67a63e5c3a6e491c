"""Every plan of the search's Triton kernel that is worth a try, timed from CUDA graphs, and its kernels one by one.

python benchmarks/search_plans.py                  # all rows of search.py with d > 2
python benchmarks/search_plans.py --rows 0 1 4
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from search import CUDA_ROWS, captured, one_time
from table import Table, add_json
from torch import Tensor

from gsqtok.search import triton as kernel
from gsqtok.search.triton import Plan

WORKERS = 12  # processes that compile


def plans(n: int, v: int, d: int) -> list[Plan]:
    """Plans worth timing for a row of the table."""
    usual = Plan.choose(n, v, d, "cosine")
    found: dict[Plan, None] = {usual: None}
    for (rows, warps), codewords, terms, stages, factor in itertools.product(
        [(64, 4), (128, 4), (128, 8), (256, 8)], [64, 128, 256], [1, 2, 3], [3, 5], [0.5, 1, 2]
    ):
        splits = max(1, round(usual.splits * factor * usual.rows / rows))
        inner = max(16, 2 ** math.ceil(math.log2(terms * d)))
        whole = inner // d >= 3 and terms < 3  # more terms would cost nothing
        if whole or inner > 64 or (terms > 1 and inner > 32) or rows * codewords // warps > 8192:
            continue
        if (codewords == 64 or stages == 5) and factor != 1:
            continue
        if -(-v // codewords) // splits > 4096:
            continue
        found[Plan(rows, codewords, terms, splits, warps, stages)] = None
    return list(found)


def compile_plans(jobs: list[tuple[int, int, int, int]]) -> None:
    """In a process of its own: run plans once on few latents, which leaves the kernels in Triton's cache on disk."""
    for n, v, d, number in jobs:
        latents, codebook = torch.randn(64, d, device="cuda"), torch.randn(v, d, device="cuda")
        try:
            kernel.nearest(latents, codebook, "cosine", plans(n, v, d)[number])
        except Exception as error:
            print("  cannot run", plans(n, v, d)[number], type(error).__name__, file=sys.stderr)


def compiled(rows: list[tuple[int, int, int]]) -> None:
    """Have the kernels of all plans in Triton's cache."""
    jobs = [(*row, number) for row in rows for number in range(len(plans(*row)))]
    start = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=compile_plans, args=(jobs[i::WORKERS],)) for i in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    print(f"compiled {len(jobs)} plans in {time.perf_counter() - start:.0f} s", flush=True)


def timed(n: int, v: int, d: int) -> Iterator[dict[str, Any]]:
    """The usual plan, and the six fastest."""
    torch.manual_seed(0)
    latents, codebook = torch.randn(n, d, device="cuda"), torch.randn(v, d, device="cuda")
    usual = Plan.choose(n, v, d, "cosine")
    times: list[tuple[float, Plan]] = []
    for plan in plans(n, v, d):
        try:
            call = captured(partial(kernel.nearest, latents, codebook, "cosine", plan))
        except Exception:  # it takes more shared memory than there is
            continue
        times.append((statistics.median(one_time(call, "cuda") for _ in range(15)), plan))
    times.sort(key=lambda pair: pair[0])
    for place, (ms, plan) in enumerate(times):
        if place < 6 or plan == usual:
            kernels = kernel_times(partial(kernel.nearest, latents, codebook, "cosine", plan)) if place == 0 else ""
            note = "usual" if plan == usual else ""
            yield {"n": n, "v": v, "d": d, "ms": ms, "note": note, "kernels": kernels} | vars(plan)


def kernel_times(call: Callable[[], Tensor]) -> str:
    """Microseconds of every kernel of a call, as the profiler sees them, with a warm cache."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(10):
            call()
        torch.cuda.synchronize()
    events = [event for event in profile.key_averages() if event.device_time_total > 0]
    events.sort(key=lambda event: -event.device_time_total)
    return ", ".join(f"{event.key.split('(')[0][-40:]} {event.device_time_total / 10:.1f}" for event in events[:8])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", help="of search.py's table, from 0; default all")
    add_json(parser)
    args = parser.parse_args()
    rows = [row for number, row in enumerate(CUDA_ROWS) if row[2] > 2 and number in (args.rows or range(99))]
    columns = {"n": ("N", ",d"), "v": ("V", ",d"), "d": ("d", "d"), "ms": ("ms", ".4f"), "note": ("", "")}
    columns |= {name: (name, "d") for name in ("rows", "codewords", "terms", "splits", "warps", "stages")}
    table = Table(columns | {"kernels": ("kernels, us", "")})
    compiled(rows)
    for row in rows:
        for line in timed(*row):
            table.add(line)
    table.write(args.json, "cuda")


if __name__ == "__main__":
    main()
