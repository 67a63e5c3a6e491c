"""What calls of the search and of quantizers cost one by one, before and after a change, all in one run on one card.

    mkdir /tmp/before && git archive main src | tar x -C /tmp/before
    python benchmarks/eager.py /tmp/before . --json eager.json
    TRITON_INTERPRET=1 python benchmarks/eager.py /tmp/before . --toy     # on a CPU: whether this script works

The peer is what one would write: products of normalised rows and argmax, in a quantizer with both losses. Each tree has
a process of its own; they take turns at every case. Before, more processes compile all kernels. `event` is the time on
the device (the host may be ahead), `host` until the call returns, `wall` from an idle device to an idle device,
`replay` the call as a CUDA graph, `differ` how many choices are not as near as can be. What is measured of some parts
takes their place in the file alone. Parts:
table   the search and the quantizers; `waits` where the host waits for the device
sorted  the search at d = 2 and 1, and what sorting takes by dtype
layers  the host's time for what a call consists of (of the second tree, like all below)
few     the search on the sphere that leaves codewords out; `before` are the kernels that look at all
exact   kernels beside the search in blocks, on ties, near ties, very long and very short rows
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import count
from itertools import product as pairs
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from graphs import captured
from table import Table, add_json
from torch import Tensor

import gsqtok
from gsqtok.quantizers import build_quantizer
from gsqtok.search import nearest
from gsqtok.search.rows import check

Case = dict[str, Any]
PARTS = ("table", "sorted", "layers", "few", "exact")
BOTH = ("table", "sorted")  # of both trees
COLUMNS = {
    "case": (f"{'case':44}", ""),
    "event_before": ("before, ms", ".3f"),
    "event": ("now, ms", ".3f"),
    "replay_before": ("replay before, ms", ".3f"),
    "replay": ("replay, ms", ".3f"),
    "peer": ("peer, ms", ".3f"),
    "wall": ("idle to idle, ms", ".3f"),
    "host": ("host, us", ".0f"),
    "differ": ("differ", ""),
}
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
RUNS = 2 if DEVICE == "cpu" else 30
LARGEST = 20 << 30  # bytes of the peer's products
_compiling = False
_flush: list[Tensor] = []


def cases(toy: bool) -> Iterator[Case]:
    """What is measured, in order."""
    small, large = ((40, 50), (40, 50)) if toy else ((1024, 8192), (524_288, 262_144))
    shapes = [(n, 8192, 8) for n in (256, 1024, 4096, 65_536)] + [(262_144, 8192, 4)]
    for shape, metric in pairs([(*small, 8)] if toy else shapes, ("cosine", "euclidean")):
        yield {"part": "table", "shape": shape, "metric": metric}
    books = [(4096, 8, 1, 8192), (65_536, 8, 1, 8192), (16_384, 32, 4, 65_536)]
    for book, name in pairs([(40, 8, 2, 50)] if toy else books, ("gsq", "vq", "ema_vq")):
        yield {"part": "table", "book": book, "name": name}
    for d, repeated in pairs((2, 1), (1, 64)):
        yield {"part": "sorted", "shape": (*large, d), "metric": "cosine", "repeated": repeated}
    for dtype in ("float64", "float32", "int32", "bfloat16"):
        yield {"part": "sorted", "dtype": dtype, "size": large[1]}
    yield {"part": "layers", "shape": (*small, 8)}
    few_of = ((40,), (300,)) if toy else ((1 << 14, 1 << 16, 1 << 18), (1 << 16, 1 << 18, 1 << 20))
    for n, v, d in pairs(*few_of, (3, 4)):
        yield {"part": "few", "shape": (n, v, d)}
    for d, metric, groups in pairs((1, 2, 3, 8, 16), ("cosine", "euclidean"), (0, 3)):
        yield {
            "part": "exact",
            "shape": (30, 70, d) if toy else (20_000, 20_000, d),
            "metric": metric,
            "groups": groups,
        }


def wall(call: Callable[[], Any], runs: int = RUNS) -> tuple[float, float]:
    """Milliseconds from an idle device to an idle device, and microseconds until the call returns."""
    synchronize = torch.cuda.synchronize if DEVICE == "cuda" else int
    whole, host = [], []
    for _ in range(runs):
        synchronize()
        start = time.perf_counter()
        call()
        host.append(1e6 * (time.perf_counter() - start))
        synchronize()
        whole.append(1e3 * (time.perf_counter() - start))
    return statistics.median(whole), statistics.median(host)


def event(call: Callable[[], Any], runs: int = RUNS) -> float:
    """Milliseconds between events, with a cold L2 cache; while that is overwritten the host gets ahead."""
    if not _flush:
        _flush.append(torch.empty(512 << 20, dtype=torch.int8, device=DEVICE))
    times = []
    for _ in range(runs):
        _flush[0].zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def timed(call: Callable[[], Any], peer: Callable[[], Any] | None = None) -> Case:
    """All times of a call and its peer; none while kernels are compiled."""
    call()
    if _compiling:
        return {}
    whole, host = wall(call)
    found: Case = {"wall": whole, "host": host}
    if peer is not None:
        found["peer"], found["peer_host"] = wall(peer)
    if DEVICE == "cuda":
        found["event"] = event(call)
        if peer is not None:
            found["peer"] = event(peer)
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
            torch.cuda.set_sync_debug_mode("default")
            found["replay"] = event(captured(call))
        except RuntimeError as error:
            found["waits"] = str(error).splitlines()[0][:80]
        torch.cuda.set_sync_debug_mode("default")
    return found


def product(z: Tensor, c: Tensor) -> Tensor:
    return (F.normalize(z, dim=1) @ F.normalize(c, dim=1).T).argmax(dim=1)


def rows_of(n: int, v: int, d: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, d, device=DEVICE), torch.randn(v, d, device=DEVICE)


def table(shape: list[int], metric: str, repeated: int = 1) -> Iterator[Case]:
    z, c = rows_of(*shape)
    c = c[torch.arange(len(c), device=DEVICE) // repeated].clone()
    both = [nearest(z, c, metric=metric, use_triton=by) for by in (True, False)]
    peer = (lambda: product(z, c)) if 4 * len(z) * len(c) <= LARGEST else None
    name = f"nearest {metric} {' x '.join(map(str, shape))}{' repeated' * (repeated > 1)}"
    times = timed(lambda: nearest(z, c, metric=metric, use_triton=True), peer)
    yield {"name": name, "differ": worse(z, c, *both, metric)} | times


def quantizer(book: list[int], name: str) -> Iterator[Case]:
    torch.manual_seed(0)
    n, dim, groups, v = book
    quantizer = build_quantizer(name, dim=dim, groups=groups, codebook_size=v).to(DEVICE).train()
    latent = torch.randn(n, dim, device=DEVICE, requires_grad=True)
    codebook = quantizer.codebook.detach().clone().requires_grad_()

    def step() -> None:
        out = quantizer(latent)
        quantizer.update(latent, out.indices)
        torch.autograd.grad(out.quantized.sum() + out.loss, [latent, *quantizer.parameters()])

    def plain() -> None:
        rows = F.normalize(latent.view(n * groups, -1), dim=1)
        codewords = F.embedding(product(rows.detach(), codebook), codebook)
        loss = F.mse_loss(codewords, rows.detach()) + 0.25 * F.mse_loss(rows, codewords.detach())
        torch.autograd.grad((rows + (codewords - rows).detach()).sum() + loss, [latent, codebook])

    name = f"{name} {n} x {v} x {dim}, groups {groups}"
    yield {"name": f"{name}: both ways"} | timed(step, plain if 4 * n * groups * v <= LARGEST else None)
    with torch.no_grad():
        yield {"name": f"{name}: forward"} | timed(lambda: quantizer(latent))


def sort(dtype: str, size: int) -> Iterator[Case]:
    keys = (torch.rand(size, device=DEVICE) * 32000).to(getattr(torch, dtype))
    yield {"name": f"torch.sort {dtype} {size}"} | timed(lambda: torch.sort(keys, stable=True))


def layers(shape: list[int]) -> Iterator[Case]:
    from gsqtok.search import triton

    z, c = rows_of(*shape)
    found = z.new_empty(len(z), dtype=torch.int64)
    key = (z.shape, c.shape, z.stride(), c.stride(), "cosine", None, z.dtype, c.dtype)
    kernels, sizes = triton._launches(*key), count(1)
    for name, call in {
        "torch.empty": lambda: z.new_empty(1024),
        "z + 1": lambda: z + 1,
        "check": lambda: check(z, c, "cosine", 1),
        "cached launches": lambda: triton._launches(*key),
        "three kernels": lambda: kernels(z, c, found),
        "three kernels by Triton": lambda: kernels._first(
            z.new_empty(kernels._bytes, dtype=torch.uint8), (z, c, found)
        ),
        "kernels.nearest": lambda: triton.nearest(z, c, "cosine"),
        "the operator": lambda: torch.ops.gsqtok.nearest.default(z, c, "cosine", True, 1),
        "nearest": lambda: nearest(z, c, use_triton=True),
        "nearest, another N at every call": lambda: nearest(z[next(sizes) :], c, use_triton=True),
        **quantizer_layers(*shape),
    }.items():
        call()
        yield {"name": name} | ({} if _compiling else {"host": wall(call, 5 * RUNS)[1]})


def quantizer_layers(n: int, v: int, d: int) -> dict[str, Callable[[], Any]]:
    """What a quantizer's call and its gradient consist of."""
    made = build_quantizer("gsq", dim=d, groups=1, codebook_size=v).to(DEVICE).train()
    latent, rows = (torch.randn(n, d, device=DEVICE, requires_grad=True) for _ in range(2))
    indices, out, one = torch.randint(v, (n,), device=DEVICE), made(latent), torch.ones((), device=DEVICE)
    simple, gradient = (2 * latent).sum(), torch.ones(n, d, device=DEVICE)

    def back(*of: Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad([out.quantized, out.loss], of, [gradient, one], retain_graph=True)

    return {
        "gsq without a gradient": torch.no_grad()(lambda: made(latent)),
        "gsq": lambda: made(latent),
        "its gradient": back(latent, made.codebook),
        "its gradient of latents alone": back(latent),
        "embedding_dense_backward": lambda: torch.ops.aten.embedding_dense_backward(
            rows.detach(), indices, v, -1, False
        ),
        "the gradient of (2 * z).sum()": lambda: torch.autograd.grad(simple, latent, retain_graph=True),
    }


def few(shape: list[int]) -> Iterator[Case]:
    from gsqtok.search import sphere_triton, triton

    z, c = rows_of(*shape)
    best = triton.nearest(z, c, "cosine")
    everything = {f"{key}_before": value for key, value in timed(lambda: triton.nearest(z, c, "cosine")).items()}
    differ = int((sphere_triton.nearest(z, c) != best).sum())
    name = " x ".join(map(str, shape))
    yield {"name": name, "differ": differ} | everything | timed(lambda: sphere_triton.nearest(z, c))


def exact(shape: list[int], metric: str, groups: int) -> Iterator[Case]:
    (n, v, d), several = shape, max(1, groups)
    z, c = (x.view(-1, several, d) for x in rows_of(n * several, v * several, d))
    c[::7] = c[:1]
    z[1::3] = F.normalize(c[torch.randint(v, (2, len(z[1::3])), device=DEVICE)], dim=-1).mean(0)
    z[::5] *= 1e-20 if metric == "cosine" else 1e3
    given = (z, c.transpose(0, 1)) if groups else (z[:, 0], c[:, 0])
    both = [nearest(*given, metric=metric, use_triton=by).view(n, -1) for by in (True, False)]
    differ = sum(worse(z[:, g], c[:, g], *(found[:, g] for found in both), metric) for g in range(several))
    yield {"name": f"{metric} {shape} groups {groups}", "differ": differ}


def worse(z: Tensor, c: Tensor, found: Tensor, best: Tensor, metric: str) -> int:
    """How many were found that are not as near as the best, up to what float64 rounds."""
    z, pair = z.double(), [c[i].double() for i in (found, best)]
    if metric == "cosine" and z.shape[1] > 1:
        z, *pair = (F.normalize(x, dim=1, eps=1e-300) for x in (z, *pair))
        first, second = ((z * of).sum(1) for of in pair)
        return int((first < second - 1e-13).sum())
    first, second = ((z - of).square().sum(1) for of in pair)
    return int((first > second * (1 + 1e-13)).sum())


def serve(tree: Path) -> None:
    """Answer cases from standard input, one a line, with their rows."""
    global _compiling
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed is no answer
    assert Path(gsqtok.__file__).is_relative_to(tree.resolve()), f"{gsqtok.__file__} is not of {tree}"
    for line in sys.stdin:
        case = json.loads(line)
        _compiling, part = case.pop("compiling"), case.pop("part")
        measures = {"layers": layers, "few": few, "exact": exact}
        measure = quantizer if "book" in case else sort if "dtype" in case else measures.get(part, table)
        print(json.dumps(list(measure(**case))), file=answers, flush=True)


class Tree:
    """A process that measures cases with the package of a source tree."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(path), str(path), "--serve"], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": f"{path.resolve()}/src", "OMP_NUM_THREADS": "2"},
        )  # fmt: skip

    def ask(self, case: Case, compiling: bool = False) -> list[Case]:
        self.process.stdin.write(json.dumps(case | {"compiling": compiling}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.process.args[2]} has ended at {case}: see above")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compile_some(path: Path, wanted: list[Case]) -> None:
    """Leave kernels in Triton's cache on disk."""
    tree = Tree(path)
    for case in wanted:
        tree.ask(case, compiling=True)
    tree.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--toy", action="store_true", help="tiny sizes")
    add_json(parser)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.after)
    wanted, begin = [case for case in cases(args.toy) if case["part"] in args.parts], time.monotonic()
    card = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU, Triton's interpreter: times of no use"
    versions = {name: metadata.version(name) for name in ("torch", "triton")}
    print(card, versions, flush=True)
    if DEVICE == "cuda":
        both = [case for case in wanted if case["part"] in BOTH]
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(compile_some, args.before, both[i::3]) for i in range(3)]
            jobs += [pool.submit(compile_some, args.after, wanted[i::5]) for i in range(5)]
        print(
            *{str(job.exception()) for job in jobs if job.exception()}, f"{time.monotonic() - begin:.0f} s", flush=True
        )
    trees, table = {"before": Tree(args.before), "after": Tree(args.after)}, Table(COLUMNS)
    for number, case in enumerate(wanted):
        answers = {}
        for name in (["before", "after"][:: (-1) ** number]) if case["part"] in BOTH else ["after"]:
            answers[name] = trees[name].ask(case)
        for before, after in zip(answers.get("before", answers["after"]), answers["after"], strict=True):
            table.add({"part": case["part"]} | merged(before if "before" in answers else {}, after))
    waiting = [row["case"] for row in table.rows if row.get("waits")]
    print(f"{time.monotonic() - begin:.0f} s", f"the host waits in {', '.join(waiting)}" if waiting else "")
    if args.json and args.json.exists():
        others = json.loads(args.json.read_text()).get("rows", [])
        table.rows = sorted(
            [row for row in others if row["part"] not in args.parts] + table.rows,
            key=lambda row: PARTS.index(row["part"]),
        )
    table.write(args.json, DEVICE)
    for tree in trees.values():
        tree.close()


def merged(before: Case, after: Case) -> Case:
    """One row of what both trees, or one, answered."""
    row = {"case": after["name"]} | {key: value for key, value in after.items() if key != "name"}
    row |= {f"{key}_before": before[key] for key in ("event", "replay", "wall", "host") if key in before}
    for key in ("differ", "waits"):
        if key in row or key in before:
            row[key] = str(max((tree[key] for tree in (before, after) if key in tree), default=""))
    return row


if __name__ == "__main__":
    main()
