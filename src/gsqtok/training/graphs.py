"""Training steps from CUDA graphs: the host launches a network's forward or backward pass, or an update, as one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gsqtok.acceleration.replay import recorded
from gsqtok.tokenizer import ImageTokenizer


def record(tokenizer: ImageTokenizer, images: Tensor, precision: torch.dtype | None, pool: Any = None) -> None:
    """Record encoder and decoder, in place, for training on batches like ``images``.

    What then comes in training mode, with gradient, with this shape, type and precision replays the graphs; anything
    else (another size, evaluation, no gradient) runs as before. Values and gradients are those of the eager networks.

    Call it once for each shape, with the tokenizer in training mode on its device, before it is wrapped
    (DistributedDataParallel, ``Accelerator.prepare``) and before ``compile``, and after the averaged copy is made,
    which stays eager. With many ranks all gradients of a network come at once, so that exchanging them overlaps less
    with computing them.

    Gradients live in the graphs' own memory: ``zero_grad(set_to_none=True)`` after each step is right for one backward
    pass a step. To accumulate several, let every parameter have a ``.grad`` before the first (and zero it with
    ``set_to_none=False``), since a gradient taken over as it is would be overwritten by the next replay.

    What the graphs return lives there too, latent and reconstruction: the next forward pass overwrites it, so finish a
    step's backward pass before the next forward pass, and clone what is to outlast the step. Likewise for
    ``torch.autograd.grad``: a second one through the same graph overwrites the results of the first.

    Args:
        tokenizer: whose ``forward`` the training step calls.
        images: (B, 3, H, W), H and W multiples of f, on the tokenizer's device; its values do not matter.
        precision: of autocast in the training step; None for none.
        pool: ``torch.cuda.graph_pool_handle()``, by which the graphs of several shapes share their memory.

    Raises:
        ValueError: not on CUDA, not in training mode, or a size that would be padded.
    """
    if not images.is_cuda or tokenizer.device != images.device:
        raise ValueError(f"CUDA graphs need tokenizer and images on one GPU, not {tokenizer.device}, {images.device}")
    if not tokenizer.training:
        raise ValueError("record the training step in training mode: call tokenizer.train() first")
    batch, _, height, width = images.shape
    rows, columns = tokenizer.grid(height, width)
    if tokenizer.image_size(rows, columns) != (height, width):
        raise ValueError(f"{height} x {width} pixels are no multiples of the factor {tokenizer.factor}")

    weight = tokenizer.decoder.conv_in.weight
    latent = torch.randn(batch, weight.shape[1], rows, columns, device=images.device)
    # As the quantizer hands it over: channels last in (..., D), hence innermost in memory.
    latent = latent.to(weight.dtype, memory_format=torch.channels_last).requires_grad_()
    # Replays write their input into the sample: it must share no memory with the caller's images.
    _record_training(
        [(tokenizer.encoder, images.detach().to(weight.dtype, copy=True)), (tokenizer.decoder, latent)],
        precision,
        pool,
    )


def record_backbone(backbone: nn.Module, images: Tensor, precision: torch.dtype | None) -> None:
    """Record a frozen network's passes over batches like ``images``, in place: with gradient to them, and without.

    Features with gradient live in the graph's memory until the next such pass. A second derivative (R1) cannot go
    through a graph.

    Args:
        backbone: images (B, 3, H, W) -> feature maps; it trains nothing.
        images: float32, on the network's device, a GPU; its values do not matter.
        precision: of autocast in the training step; None for none.
    """
    sample = images.detach().to(torch.float32, copy=True)
    _record_training([(backbone, sample.clone().requires_grad_())], precision)
    with torch.autocast("cuda", precision, enabled=precision is not None):
        graph, source, features = recorded(backbone, sample)

    def replay(x: Tensor) -> Any:
        source.copy_(x)
        graph.replay()
        return tree_map(torch.clone, features)  # another pass may come before they are used

    backbone.forward = only_like(source, backbone, replay, backbone.forward, precision, gradient=False)


def _record_training(samples: list[tuple[nn.Module, Tensor]], precision: torch.dtype | None, pool: Any = None) -> None:
    """Record networks with gradient, each for inputs like its sample."""
    networks = [network for network, _ in samples]
    eager = [network.forward for network in networks]
    gc.collect()  # freeing an earlier graph or event in the middle of a recording would spoil it
    torch.cuda.synchronize(samples[0][1].device)
    # autocast may keep no converted weights: a graph would go on reading those of its recording
    with torch.autocast("cuda", precision, enabled=precision is not None, cache_enabled=False):
        torch.cuda.make_graphed_callables(tuple(networks), tuple((sample,) for _, sample in samples), pool=pool)
    for (network, sample), plain in zip(samples, eager, strict=True):
        network.forward = only_like(sample, network, network.forward, plain, precision)


def only_like(
    sample: Tensor,
    network: nn.Module,
    replay: Callable[[Tensor], Any],
    eager: Callable[[Tensor], Any],
    precision: torch.dtype | None,
    gradient: bool = True,
) -> Callable[[Tensor], Any]:
    """A forward that replays for inputs like the sample, in the network's present mode, and is eager for others.

    ``gradient`` says whether passes with or those without it (``torch.no_grad``) were recorded.
    """
    mode = network.training
    like = (sample.shape, sample.dtype, sample.device, sample.requires_grad)
    device = sample.device.type

    def forward(x: Tensor) -> Any:
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        known = (
            torch.is_grad_enabled() == gradient
            and network.training == mode
            and (x.shape, x.dtype, x.device, x.requires_grad) == like
            and autocast == precision
        )
        return (replay if known else eager)(x)

    return forward


class Recorded:
    """A function of tensors on a GPU, whose kernels are launched as one from the second call on.

    Args:
        function: of two lists of float32 tensors. Besides these it reads and writes only tensors that stay where they
            are; it returns nothing and never waits for the device.
    """

    def __init__(self, function: Callable[[Sequence[Tensor], Sequence[Tensor]], None]) -> None:
        self.function = function
        self.forget()

    def forget(self) -> None:
        """Record anew, since tensors have been exchanged."""
        self._shapes: list[torch.Size] = []
        self._inputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Run it, plainly where the shapes are not those of the last call."""
        given = [*first, *second]
        shapes = [tensor.shape for tensor in given]
        if shapes != self._shapes:
            self.forget()
            self._shapes = shapes
            self.function(first, second)
            return
        if self._graph is None:
            self._inputs, graph = [tensor.clone() for tensor in given], torch.cuda.CUDAGraph()
            # the threads that load images go on meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.function(self._inputs[: len(first)], self._inputs[len(first) :])
            self._graph = graph
        else:
            torch._foreach_copy_(self._inputs, given)
        self._graph.replay()
