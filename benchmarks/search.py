"""Speed, memory and exactness of the nearest-codeword search beside what else can be had, all in one run.

    python benchmarks/search.py --device cuda          # the whole table; --quick for its first rows
    python benchmarks/search.py --device cpu
    python benchmarks/search.py --device cpu --columns # a line for each row, a column for each contender

Every contender gets the same raw float32 rows and returns indices; normalising is part of the time. Contenders:
gsqtok    `gsqtok.search.nearest`, on CUDA with its Triton kernels
blocks    the same without them (CUDA alone)
official  the original implementation's formula: all N x V distances, a random draw among equals
matrix    all N x V distances, then argmin
product   all N x V inner products of the normalised rows, then argmax
vqp       vector-quantize-pytorch, cosine codebook, evaluation mode (pip install vector-quantize-pytorch)
flash     flash-kmeans, fused cosine assignment, TF32 (pip install flash-kmeans; CUDA alone)
On a CPU alone, where peers have what they prepare of the codebook before they are timed, as gsqtok keeps its own:
first     gsqtok with a codebook that it has not seen
early     gsqtok with one that it has seen, but not often enough for the grid that it makes in 3 and 4 dimensions
faiss     FAISS, flat inner-product index (pip install faiss-cpu)
scipy     SciPy's k-d tree, on as many threads (d up to 8)
sklearn   scikit-learn's k-d tree (pip install scikit-learn; d up to 8)
A contender that is not installed, or runs out of memory, is left out of its row.

The contenders take turns, so that all see the same machine. On one CPU thread times are processor time, so that other
programs disturb little; else they are by the clock.

`agree` is the share of rows (of as many as can be compared in seconds) with the codeword that float64 finds, `gap` the
worst loss of float64 similarity, `extra` the peak memory beyond inputs. `graph` is the search replayed from a CUDA
graph, without the time of launching.
"""

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from graphs import captured
from table import Table, add_json
from torch import Tensor

from gsqtok.search import codebook as kept_codebooks
from gsqtok.search import grid, nearest, reference

CUDA_ROWS = [
    (65_536, 8192, 16),
    (65_536, 8192, 8),
    (262_144, 8192, 4),
    (16_384, 262_144, 16),
    (32_768, 262_144, 8),
    (16_384, 1_048_576, 16),
    (524_288, 262_144, 2),
    (524_288, 262_144, 1),
    (65_536, 8192, 3),
    (65_536, 8192, 24),
    (65_536, 8192, 32),
    (65_536, 8192, 64),
    (256, 8192, 8),
    (1024, 8192, 8),
    (4096, 8192, 8),
    (256, 262_144, 16),
    (4096, 262_144, 16),
]
CPU_ROWS = [
    (512, 256, 4),
    (2048, 256, 4),
    (8192, 256, 4),
    *((4096, v, d) for d in (2, 3, 4, 6, 8, 16, 64) for v in (1024, 8192, 65_536)),
    *((256, 1 << 20, d) for d in (2, 3, 4, 6, 8, 16)),
    (4096, 65_536, 7),  # the tokenizer inside the package, 256 px
]
DISTANCES = 1 << 26  # that exactness is checked by
MATRIX_LIMIT = {"cuda": 60 << 30, "cpu": 2 << 30}  # bytes of one N x V matrix above which none is tried
SLOW_LIMIT = {"cuda": 60 << 30, "cpu": 1 << 28}  # the same for contenders that need several such matrices


def official(latents: Tensor, codebook: Tensor) -> Tensor:
    z, c = F.normalize(latents, dim=1), F.normalize(codebook, dim=1)
    distance = z.square().sum(dim=1, keepdim=True) + c.square().sum(dim=1) - 2 * z @ c.T
    equals = distance == distance.amin(dim=1, keepdim=True)
    return torch.multinomial(equals.float(), 1).squeeze(1)


def matrix(latents: Tensor, codebook: Tensor) -> Tensor:
    z, c = F.normalize(latents, dim=1), F.normalize(codebook, dim=1)
    return (z.square().sum(dim=1, keepdim=True) + c.square().sum(dim=1) - 2 * z @ c.T).argmin(dim=1)


def product(latents: Tensor, codebook: Tensor) -> Tensor:
    return (F.normalize(latents, dim=1) @ F.normalize(codebook, dim=1).T).argmax(dim=1)


def vqp(latents: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    from vector_quantize_pytorch import VectorQuantize

    v, d = codebook.shape
    quantizer = VectorQuantize(dim=d, codebook_size=v, use_cosine_sim=True).to(latents.device).eval()
    quantizer.codebook.data.copy_(F.normalize(codebook, dim=1).view_as(quantizer.codebook))
    batch = latents[None]
    return lambda: quantizer(batch)[1].flatten()


def flash(latents: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    from flash_kmeans.assign_euclid_triton import cosine_assign_triton

    return lambda: cosine_assign_triton(F.normalize(latents, dim=1)[None], F.normalize(codebook, dim=1)[None])[0].long()


def first(latents: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    def search() -> Tensor:
        kept, kept_codebooks._kept = kept_codebooks._kept, []
        found = nearest(latents, codebook)
        kept_codebooks._kept = kept
        return found

    return search


def early(latents: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    def search() -> Tensor:
        kept = kept_codebooks.kept(codebook)
        kept.searched = 0
        found = nearest(latents, codebook)
        kept.searched = grid.STAYS
        return found

    return search


def faiss(latents: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(codebook.shape[1])
    index.add(F.normalize(codebook, dim=1).numpy())
    return lambda: torch.from_numpy(index.search(F.normalize(latents, dim=1).numpy(), 1)[1][:, 0])


def scipy(latents: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    from scipy.spatial import cKDTree

    tree = cKDTree(F.normalize(codebook.double(), dim=1).numpy(), balanced_tree=False)

    def search() -> Tensor:
        z = F.normalize(latents.double(), dim=1).numpy()
        return torch.from_numpy(tree.query(z, workers=torch.get_num_threads())[1])

    return search


def sklearn(latents: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    from sklearn.neighbors import KDTree

    tree = KDTree(F.normalize(codebook.double(), dim=1).numpy())
    return lambda: torch.from_numpy(
        tree.query(F.normalize(latents.double(), dim=1).numpy(), return_distance=False)[:, 0]
    )


def contenders(latents: Tensor, codebook: Tensor, wanted: list[str]) -> dict[str, Callable[[], Tensor]]:
    """Name -> a call that returns indices, of those that are installed and can hold what they need."""
    on_cpu = latents.device.type == "cpu"
    found: dict[str, Callable[[], Tensor]] = {"gsqtok": lambda: nearest(latents, codebook, use_triton=not on_cpu)}
    if not on_cpu:
        found["blocks"] = lambda: nearest(latents, codebook, use_triton=False)
    size = 4 * len(latents) * len(codebook)
    if size <= MATRIX_LIMIT[latents.device.type]:
        found["product"] = lambda: product(latents, codebook)
    fits = size <= SLOW_LIMIT[latents.device.type]
    if fits:
        found["matrix"] = lambda: matrix(latents, codebook)
        if len(codebook) <= 1 << 24:
            found["official"] = lambda: official(latents, codebook)
    for name, build, possible in [
        ("vqp", vqp, fits),
        ("flash", flash, not on_cpu and codebook.shape[1] > 2),
        ("first", first, on_cpu),
        ("early", early, on_cpu and codebook.shape[1] in grid.SIDE and len(codebook) <= grid.LARGEST),
        ("faiss", faiss, on_cpu),
        ("scipy", scipy, on_cpu and codebook.shape[1] <= 8),
        ("sklearn", sklearn, on_cpu and codebook.shape[1] <= 8),
    ]:
        if possible and name in wanted:
            try:
                found[name] = build(latents, codebook)
            except ImportError:
                print(f"  ({name} is not installed)", file=sys.stderr)
            except torch.cuda.OutOfMemoryError:
                pass
    return {name: call for name, call in found.items() if name == "gsqtok" or name in wanted}


def times(calls: dict[str, Callable[[], Tensor]], device: str, budget: float) -> dict[str, list[float]]:
    """Milliseconds of repeated calls, the contenders taking turns so that all see the same machine.

    In another order each time, since threads of one library are slow to wake after those of another.
    """
    measured: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # compiles, allocates
    order, shuffle = list(calls.items()), random.Random(0).shuffle
    for round_ in range(100):
        shuffle(order)
        for name, call in order:
            if round_ < 3 or min(measured[name]) * round_ < budget * 1e3:
                measured[name].append(one_time(call, device))
    return measured


def one_time(call: Callable[[], Tensor], device: str) -> float:
    if device == "cpu":
        # One thread's processor time is what it would take alone; several threads wait for each other.
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        call()
        return (clock() - start) * 1e3
    flush_cache()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def flush_cache() -> None:
    """Overwrites the L2 cache, and keeps the device busy while the host queues the launches that are to be timed."""
    global _flush
    if _flush is None:
        _flush = torch.empty(512 << 20, dtype=torch.int8, device="cuda")
    _flush.zero_()


_flush: Tensor | None = None


def extra_memory(call: Callable[[], Tensor], device: str) -> float:
    """Peak MiB during the call beyond what was held before; on a CPU by the resident set, NaN where Linux isn't."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak
        before = resident("VmRSS")
        call()
        return resident("VmHWM") - before
    except OSError:
        return math.nan


def resident(field: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


def exactness(latents: Tensor, codebook: Tensor, found: Tensor, truth: Tensor) -> tuple[float, float]:
    """Share of rows with the truth's codeword, and the largest loss of float64 similarity, of those that truth has."""
    latents, found = latents[: len(truth)], found[: len(truth)]
    if codebook.shape[1] == 1:
        distance = [(latents[:, 0].double() - codebook[i, 0].double()).abs() for i in (truth, found)]
        return (found == truth).double().mean().item(), (distance[1] - distance[0]).amax().item()
    z = F.normalize(latents.double(), dim=1)
    score = [(z * F.normalize(codebook[i].double(), dim=1)).sum(dim=1) for i in (truth, found)]
    return (found == truth).double().mean().item(), (score[0] - score[1]).amax().item()


def truth_of(latents: Tensor, codebook: Tensor) -> Tensor:
    """Indices by distances in float64 one by one, of as many latents as take seconds."""
    checked = latents[: max(16, DISTANCES // len(codebook))]
    return reference.nearest(checked.cpu(), codebook.cpu(), "cosine").to(latents.device)


COLUMNS = {
    "n": ("N", ",d"),
    "v": ("V", ",d"),
    "d": ("d", "d"),
    "name": ("contender", ""),
    "ms": ("median, ms", ".3f"),
    "least_ms": ("least", ".3f"),
    "ratio": ("of gsqtok", ".1f"),
    "agree": ("agree", ".3%"),
    "gap": ("gap", ".1e"),
    "extra_mib": ("extra, MiB", ".1f"),
}
PEERS = (
    "product",
    "faiss",
    "scipy",
    "sklearn",
    "early",
    "first",
    "vqp",
    "matrix",
    "official",
    "flash",
    "blocks",
    "graph",
)


def measured(device: str, n: int, v: int, d: int, budget: float, wanted: list[str]) -> list[dict[str, Any]]:
    """All contenders of one row."""
    torch.manual_seed(0)
    latents, codebook = torch.randn(n, d, device=device), torch.randn(v, d, device=device)
    truth = truth_of(latents, codebook)
    if device == "cpu":
        kept_codebooks.kept(codebook).searched = grid.STAYS  # it stays: what is kept of it is made before the timing
    calls = contenders(latents, codebook, wanted)
    for name in list(calls):
        try:
            calls[name]()
        except torch.cuda.OutOfMemoryError:
            del calls[name]
    extra = {name: extra_memory(call, device) for name, call in calls.items()}
    exact = {name: exactness(latents, codebook, call(), truth) for name, call in calls.items()}
    if device == "cuda":
        calls["graph"] = captured(calls["gsqtok"])
        extra["graph"], exact["graph"] = math.nan, exactness(latents, codebook, calls["graph"](), truth)
    taken = times(calls, device, budget)
    ours = statistics.median(taken["gsqtok"])
    row = {"n": n, "v": v, "d": d}
    return [
        row
        | {"name": name, "ms": statistics.median(ms), "least_ms": min(ms), "ratio": statistics.median(ms) / ours}
        | {"runs": len(ms), "agree": exact[name][0], "gap": exact[name][1], "extra_mib": extra[name]}
        for name, ms in taken.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="the first two rows only")
    parser.add_argument("--rows", type=int, nargs="+", help="rows of the table by number from 0; default all")
    parser.add_argument("--contenders", nargs="+", default=PEERS, choices=PEERS, help="beside gsqtok")
    parser.add_argument("--columns", action="store_true", help="a column for each contender, of least times")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds of timing for a contender and row")
    add_json(parser)
    args = parser.parse_args()

    rows = CUDA_ROWS if args.device == "cuda" else CPU_ROWS
    rows = [rows[number] for number in args.rows] if args.rows else rows[: 2 if args.quick else None]
    columns = COLUMNS
    if args.columns:
        columns = {key: COLUMNS[key] for key in ("n", "v", "d")}
        columns |= {name: (name, ",.2f") for name in ("gsqtok", *args.contenders)} | {"agree": ("gsqtok agrees", ".2%")}
    table = Table(columns)
    for n, v, d in rows:
        lines = measured(args.device, n, v, d, args.budget, args.contenders)
        if args.columns:
            ours = next(line for line in lines if line["name"] == "gsqtok")
            least = {line["name"]: line["least_ms"] for line in lines}
            lines = [{"n": n, "v": v, "d": d, "agree": ours["agree"], "all": lines} | least]
        for line in lines:
            table.add(line)
        if args.device == "cuda":
            torch.cuda.empty_cache()
    table.write(args.json, args.device, versions=versions())


def versions() -> dict[str, str]:
    """Of the peers that are installed."""
    found = {}
    for package in ("triton", "vector-quantize-pytorch", "flash-kmeans", "faiss-cpu", "scipy", "scikit-learn"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
