"""Time and memory of all quantizers at equal bits, beside vector-quantize-pytorch's versions, in one run.

    python benchmarks/quantizers.py                      # this CPU
    python benchmarks/quantizers.py --device cuda --positions 32768

Each case runs in a process of its own, so that its peak memory is its own, counted beyond what building the quantizer
took. Times are medians of a training step's forward (the quantizer alone) and backward (from its loss and the sum of
its values); on CUDA also of both together as the replay of a CUDA graph, without the host's time to launch them, where
a method can be captured. The peer is vector-quantize-pytorch, which must be installed.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from table import Table, add_json
from torch import nn

from gsqtok.quantizers import build_quantizer
from gsqtok.studies.methods import SETTINGS as EQUAL_BITS

# bits a position: method: options. Leech and FSQ come as near as they can.
SETTINGS: dict[int, dict[str, dict[str, Any]]] = {
    13: {method: {"dim": 8, "groups": 1, "codebook_size": 2**13} for method in ("gsq", "vq", "ema_vq")},
    **EQUAL_BITS,
}
_BOOKS = {"dim": 32, "groups": 4, "codebook_size": 2**16}
SETTINGS[64] = SETTINGS[64] | {
    "gsq separate": {"name": "gsq", "codebooks": "separate", **_BOOKS},
    **dict.fromkeys(("simvq", "fvq", "diveq"), _BOOKS),
}
SETTINGS[13]["ibq"] = {"dim": 8, "groups": 1, "codebook_size": 2**13}
SETTINGS[18] = SETTINGS[18] | {"ibq": {"dim": 8, "groups": 1, "codebook_size": 2**18}}
PEERS = ("gsq", "vq", "ema_vq", "rvq", "fsq", "lfq", "bsq", "simvq")  # that vector-quantize-pytorch has too
NAIVE = ("gsq separate", "ibq")  # beside the form that one would write first: a loop over groups, N x V matrices

Step = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # latent (N, dim) -> values, loss


def ours(method: str, options: dict[str, Any], device: str) -> tuple[nn.Module, Step]:
    quantizer = build_quantizer(**{"name": method} | options).to(device).train()

    def step(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = quantizer(latent)
        quantizer.update(latent, out.indices)  # as the peer does in its forward pass
        return out.quantized, out.loss

    return quantizer, step


def peer(method: str, options: dict[str, Any], device: str) -> tuple[nn.Module, Step]:
    """The nearest thing in vector-quantize-pytorch; groups that share a codebook become more rows."""
    from vector_quantize_pytorch import FSQ, LFQ, ResidualVQ, SimVQ, VectorQuantize

    groups = options.get("groups", 1)
    d = options["dim"] // groups
    if method in ("gsq", "vq", "ema_vq"):
        learnt = {"learnable_codebook": True, "ema_update": False} if method == "vq" else {}
        cosine = method == "gsq"  # its cosine codebook is a moving average: it cannot be trained by gradient
        model = VectorQuantize(dim=d, codebook_size=options["codebook_size"], use_cosine_sim=cosine, **learnt)
    elif method == "simvq":
        model = SimVQ(d, options["codebook_size"])
    elif method == "rvq":
        model = ResidualVQ(dim=d, num_quantizers=options["stages"], codebook_size=options["codebook_size"])
    elif method == "fsq":
        model = FSQ(levels=build_quantizer(method, **options).level_counts)
    else:
        model = LFQ(dim=d, codebook_size=2**d, spherical=method == "bsq")
    model = model.to(device).train()

    def step(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, *rest = model(latent.view(1, -1, d))
        loss = rest[-1].sum() if len(rest) > 1 else values.new_zeros(())
        return values, loss

    return model, step


def naive(method: str, options: dict[str, Any], device: str) -> tuple[nn.Module, Step]:
    """Groups one after the other, each with a quantizer of its own; the one-hot form of IBQ, as its authors have it."""
    if method == "gsq separate":
        groups = options["groups"]
        alone = {"dim": options["dim"] // groups, "codebook_size": options["codebook_size"]}
        parts = nn.ModuleList(build_quantizer("gsq", **alone) for _ in range(groups)).to(device).train()

        def in_turn(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            outs = [part(rows) for part, rows in zip(parts, latent.chunk(groups, -1), strict=True)]
            return torch.cat([out.quantized for out in outs], -1), sum(out.loss for out in outs) / groups

        return parts, in_turn
    codebook = nn.Parameter(build_quantizer("ibq", **options).codebook.detach().to(device))
    model = nn.ParameterList([codebook])

    def one_hot(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = latent @ codebook.T
        soft = logits.softmax(1)
        hard = torch.zeros_like(soft).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
        values, quantized = (hard - soft.detach() + soft) @ codebook, hard @ codebook
        mse = nn.functional.mse_loss
        loss = mse(values, latent) + mse(quantized.detach(), latent) + 0.25 * mse(quantized, latent.detach())
        return values, loss

    return model, one_hot


def measure(
    build: Callable[..., tuple[nn.Module, Step]],
    method: str,
    options: dict[str, Any],
    positions: int,
    device: str,
    repeats: int,
) -> dict[str, float]:
    torch.manual_seed(0)
    model, step = build(method, options, device)
    cuda = torch.device(device).type == "cuda"
    latent = torch.randn(positions, options["dim"], device=device, requires_grad=True)
    before = torch.cuda.memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if cuda:
        torch.cuda.reset_peak_memory_stats()

    def now() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    forward, backward = [], []
    for _ in range(repeats + 1):
        start = now()
        values, loss = step(latent)
        middle = now()
        (values.sum() + loss).backward()
        end = now()
        forward.append(middle - start)
        backward.append(end - middle)
        latent.grad = None
        model.zero_grad()
        del values, loss  # what they keep alive would stand in the way of a capture
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "forward": 1e3 * statistics.median(forward[1:]),
        "backward": 1e3 * statistics.median(backward[1:]),
        "replay": replayed(model, step, latent, repeats) if cuda else math.nan,
        "memory": (peak - before) / 2**20,
    }


def replayed(model: nn.Module, step: Step, latent: torch.Tensor, repeats: int) -> float:
    """Milliseconds of forward and backward as the replay of a CUDA graph; NaN where a method cannot be captured."""

    def both() -> None:
        values, loss = step(latent)
        (values.sum() + loss).backward()

    try:
        latent = latent.detach().clone().requires_grad_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            both()
        torch.cuda.current_stream().wait_stream(stream)
        latent.grad = None
        model.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            both()
        times = []
        for _ in range(repeats):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return statistics.median(times)
    except RuntimeError:  # it waits for the device, which a graph cannot
        return math.nan


def _run(connection: Any, *arguments: Any) -> None:
    try:
        connection.send(measure(*arguments))
    except (RuntimeError, MemoryError, AssertionError, ImportError) as error:  # no memory, no such codebook, no peer
        connection.send(str(error).splitlines()[0][:90] if str(error) else type(error).__name__)


def measure_apart(*arguments: Any) -> dict[str, float] | str:
    """``measure`` in a process of its own; a line that says why not, where it fails."""
    context = multiprocessing.get_context("forkserver")  # which imports once for all
    context.set_forkserver_preload(["__main__", "vector_quantize_pytorch"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, *arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return "killed (out of memory)"
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--positions", type=int, default=256, help="latents at once, as h * w * batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bits", type=int, nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=None)
    add_json(parser)
    arguments = parser.parse_args()
    columns = {"bits": ("bits", ".1f"), "method": ("method", "")}
    for whose in ("", "the peer's "):
        columns |= {f"{whose}{key}": (f"{whose}{key}", ".3f") for key in ("forward", "backward", "replay")}
        columns[f"{whose}memory"] = (f"{whose}MiB", ".0f")
    table = Table(columns | {"note": ("", "")})
    for bits in arguments.bits:
        for method, options in SETTINGS[bits].items():
            if arguments.methods and method not in arguments.methods:
                continue
            rest = (method, options, arguments.positions, arguments.device, arguments.repeats)
            bits_spent = build_quantizer(**{"name": method} | options).bits
            row: dict[str, Any] = {"bits": bits_spent, "method": method}
            other = peer if method in PEERS else naive if method in NAIVE else None
            for whose, build in (("", ours), ("the peer's ", other)):
                result = measure_apart(build, *rest) if build else {}
                if isinstance(result, str):
                    row["note"] = f"{whose or 'ours: '}{result}"
                else:
                    row |= {f"{whose}{key}": value for key, value in result.items()}
            table.add(row)
            table.write(arguments.json, arguments.device, positions=arguments.positions)


if __name__ == "__main__":
    main()
