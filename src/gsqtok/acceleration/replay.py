"""Inference from CUDA graphs: a network's kernels are launched as one, which is what small batches wait for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

from gsqtok.acceleration.backend import hooked_everywhere

SHAPES = 8  # graphs that are kept, the least recently used one goes
PIXELS = 2**20  # a larger batch keeps the GPU busy without

Graph = tuple[torch.cuda.CUDAGraph, Tensor, Any]


class Replays:
    """Runs networks without gradient, from a CUDA graph where the same shape has come before.

    The first input of a shape runs plainly, so that a shape that comes once costs nothing; the second is recorded. A
    graph reads the weights where they are: updating them in place is fine. Where a module, its class or a parameter has
    been exchanged it is recorded anew; with hooks, which a replay would not call, networks run plainly.
    """

    def __init__(self) -> None:
        self.graphs: OrderedDict[tuple[Any, ...], tuple[Graph, Contents] | None] = OrderedDict()

    def __deepcopy__(self, memo: dict[int, Any]) -> Replays:
        return Replays()  # the copy has weights of its own

    def __getstate__(self) -> dict[str, Any]:
        return {"graphs": OrderedDict()}

    def __call__(self, network: nn.Module, x: Tensor, pixels: int) -> Tensor:
        """``network(x)``, without gradient.

        Args:
            network: called with x alone.
            x: its input.
            pixels: of the batch of images that x stands for, B * H * W.
        """
        if not x.is_cuda or pixels > PIXELS or torch.cuda.is_current_stream_capturing():
            return network(x)
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        key = (id(network), x.shape, x.stride(), x.dtype, x.device, autocast, network.training)
        if key not in self.graphs:
            self.graphs[key] = None
            while len(self.graphs) > SHAPES:
                self.graphs.popitem(last=False)
            return network(x)
        self.graphs.move_to_end(key)
        known = self.graphs[key]
        if known is not None:
            out = replayed(known[0], x)
            if not known[1].changed():  # looked at while the GPU is at work, so it costs no time
                return out.clone()
        self.graphs[key], contents = None, Contents(network)
        if contents.changed():
            return network(x)
        known = self.graphs[key] = recorded(network, x), contents
        return replayed(known[0], x).clone()


def replayed(recording: Graph, x: Tensor) -> Tensor:
    """What a graph writes for x, in the graph's own memory."""
    graph, source, out = recording
    source.copy_(x)
    graph.replay()
    result: Tensor = out
    return result


class Contents:
    """What a network consists of, to see within microseconds what a replay would not notice.

    It keeps the parameters that a graph reads, so a graph may run once more after they have been exchanged.
    """

    def __init__(self, network: nn.Module) -> None:
        self.modules = list(network.modules())
        self.states = [module.__dict__ for module in self.modules]
        self.parts = self._parts()

    def _parts(self) -> list[Any]:
        kinds = ("_modules", "_parameters")
        parts = [part for state in self.states for kind in kinds for part in state[kind].values()]
        return [*parts, *map(type, self.modules), *(state.get("forward") for state in self.states)]

    def changed(self) -> bool:
        """Whether a module, its class or forward, or a parameter has been replaced, or a module has a hook."""
        hooked = any(state["_forward_hooks"] or state["_forward_pre_hooks"] for state in self.states)
        parts = self._parts()
        return hooked or hooked_everywhere() or len(parts) != len(self.parts) or any(map(is_not, parts, self.parts))


def recorded(network: Callable[[Tensor], Any], x: Tensor) -> Graph:
    """A graph of ``network(x)`` without gradient, the tensor that it reads and what it writes."""
    with torch.cuda.device(x.device), torch.no_grad():
        source = x.clone()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # kernels are chosen and compiled before, not while recording
            for _ in range(2):
                network(source)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Weights converted under autocast must be converted in the graph, not once before it.
        with torch.autocast("cuda", enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False,
                            dtype=torch.get_autocast_dtype("cuda")), torch.cuda.graph(graph):  # fmt: skip
            out = network(source)
        return graph, source, out
