"""Inference from CUDA graphs: a network's kernels are launched as one, which is what small batches wait for."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

SHAPES = 8  # graphs that are kept, the least recently used one goes
PIXELS = 2**20  # a larger batch keeps the GPU busy without


class Replays:
    """Runs networks without gradient, from a CUDA graph where the same shape has come before.

    The first input of a shape runs plainly, so that a shape that comes once costs nothing; the second is recorded. A
    graph reads the weights where they are: updating them in place is fine, replacing them needs ``clear``.
    """

    def __init__(self) -> None:
        self.graphs: OrderedDict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor] | None] = OrderedDict()

    def clear(self) -> None:
        """Forget all graphs."""
        self.graphs.clear()

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
        if self.graphs[key] is None:
            self.graphs[key] = recorded(network, x)
        graph, source, out = self.graphs[key]
        source.copy_(x)
        graph.replay()
        return out.clone()


def recorded(network: nn.Module, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Any]:
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
