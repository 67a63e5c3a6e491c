"""Networks that run fast by themselves wherever they can, and are the plain ones elsewhere.

``accelerate`` gives modules another class; modules, parameters and their names stay. The paper's encoder and decoder
then run as a whole, by `gsqtok.acceleration.fused` on a GPU, and on a CPU without gradient by
`gsqtok.acceleration.backend`; in compact and published networks blocks and norms do so one by one. Compilers, exporters
and tensors of other kinds get the plain formula.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gsqtok.acceleration.backend import Backend, Network, hooked_everywhere
from gsqtok.acceleration.fused import Fused
from gsqtok.networks import Decoder, Encoder
from gsqtok.networks.blocks import GroupNorm, NearestUpsample, ResidualBlock
from gsqtok.networks.compact import RMSNorm
from gsqtok.search.launches import kernels_run_on

_PARTS = ["conv_in", "blocks", "norm_out", "conv_out"]
_CPU, _FUSED = Backend(), Fused()


class AcceleratedEncoder(Encoder):
    """An encoder that runs fast where it can."""

    def forward(self, images: Tensor) -> Tensor:
        """As the encoder."""
        return _run(self, super().forward, images)


class AcceleratedDecoder(Decoder):
    """A decoder that runs fast where it can."""

    def forward(self, quantized: Tensor) -> Tensor:
        """As the decoder."""
        return _run(self, super().forward, quantized)


class AcceleratedResidualBlock(ResidualBlock):
    """A block that runs fast in whatever network it is."""

    def forward(self, x: Tensor) -> Tensor:
        """As the block."""
        return _alone(self, ResidualBlock, super().forward, x)


class AcceleratedNearestUpsample(NearestUpsample):
    """Likewise."""

    def forward(self, x: Tensor) -> Tensor:
        """As the up-sampling."""
        return _alone(self, NearestUpsample, super().forward, x)


class AcceleratedGroupNorm(GroupNorm):
    """Likewise."""

    def forward(self, x: Tensor) -> Tensor:
        """As the norm."""
        return _alone(self, GroupNorm, super().forward, x)


class AcceleratedRMSNorm(RMSNorm):
    """A norm that runs as one kernel on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """As the norm."""
        if _backend(x) is not _FUSED or _FUSED.prepare(x) is None:
            return super().forward(x)
        with torch.cuda.device_of(x):
            return _FUSED.rms_norm(self, x)


_SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    Encoder: AcceleratedEncoder,
    Decoder: AcceleratedDecoder,
    ResidualBlock: AcceleratedResidualBlock,
    NearestUpsample: AcceleratedNearestUpsample,
    GroupNorm: AcceleratedGroupNorm,
    RMSNorm: AcceleratedRMSNorm,
}
_PLAIN = {fast: plain for plain, fast in _SWAPS.items()}


def accelerate(module: nn.Module, *, enabled: bool = True) -> None:
    """Let networks, blocks and norms of this package in the module run fast where they can, in place.

    Values and gradients are those of the plain networks up to rounding, and ``state_dict`` keeps its names. Blocks with
    hooks, adapters, ``weight_norm`` or parts that are not known here are called as the plain networks call them.
    `ImageTokenizer` does this by itself. On a GPU it takes effect where weights or images have their channels innermost
    (``module.to(memory_format=torch.channels_last)``).

    Args:
        module: a tokenizer, or a network; subclasses of the encoder and the decoder are left alone.
        enabled: False makes them plain again.
    """
    if not enabled:
        for part in module.modules():
            part.__class__ = _PLAIN.get(type(part), type(part))
    elif type(module) in _SWAPS:  # and what it is made of stays plain
        module.__class__ = _SWAPS[type(module)]
    elif not isinstance(module, (Encoder, Decoder, *_PLAIN)):
        for child in module.children():
            accelerate(child)


def _backend(x: Tensor) -> Backend | None:
    """What computes on x; None for the plain formula, which compilers, exporters, transforms and hooks are to see."""
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing() or hooked_everywhere()
    # the transforms of torch.func hide what they do, and PyTorch offers no other way to see them
    if watched or type(x) not in (Tensor, nn.Parameter) or x.ndim != 4 or torch._C._are_functorch_transforms_active():
        return None
    if kernels_run_on(x.device):
        return _FUSED
    return None if x.device.type != "cpu" or torch.is_grad_enabled() else _CPU


def _run(network: Network, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    backend = _backend(x)
    if backend is None or list(network.__dict__["_modules"]) != _PARTS:
        return plain(x)
    with torch.cuda.device_of(x):  # Triton launches on the current one
        return backend.run(network, x)


def _alone(block: nn.Module, kind: type[nn.Module], plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    backend = _backend(x)
    if backend is None:
        return plain(x)
    with torch.cuda.device_of(x):
        return backend.alone(block, kind, plain, x)
