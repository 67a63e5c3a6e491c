"""Networks that run fast by themselves wherever they can, and are the plain ones elsewhere.

``accelerate`` gives an encoder, a decoder or an RMS norm another class; modules, parameters and their names stay. Its
``forward`` then runs by `gsqtok.acceleration.fused` on a GPU, and on a CPU without gradient by
`gsqtok.acceleration.backend`. Compilers, exporters and tensors of other kinds get the plain formula.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from gsqtok.acceleration.backend import Backend, Network
from gsqtok.acceleration.fused import Fused, fusible, kernels_run_on
from gsqtok.networks import Decoder, Encoder
from gsqtok.networks.compact import RMSNorm

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


class AcceleratedRMSNorm(RMSNorm):
    """A norm that runs as one kernel on a GPU, in whatever network it is."""

    def forward(self, x: Tensor) -> Tensor:
        """As the norm."""
        return _FUSED.rms_norm(self, x) if _eager(x) and fusible(x) else super().forward(x)


_SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    Encoder: AcceleratedEncoder,
    Decoder: AcceleratedDecoder,
    RMSNorm: AcceleratedRMSNorm,
}


def accelerate(module: nn.Module, *, enabled: bool = True) -> None:
    """Let networks of this package in the module run fast where they can, in place.

    Values and gradients are those of the plain networks up to rounding, and ``state_dict`` keeps its names. Blocks with
    hooks, adapters, ``weight_norm`` or parts that are not known here are called as the plain networks call them.
    `ImageTokenizer` does this by itself. On a GPU it takes effect where weights or images have their channels innermost
    (``module.to(memory_format=torch.channels_last)``).

    Args:
        module: a tokenizer, or a network; subclasses are left alone.
        enabled: False makes them plain again.
    """
    swaps = _SWAPS if enabled else {fast: plain for plain, fast in _SWAPS.items()}
    for network in module.modules():
        network.__class__ = swaps.get(type(network), type(network))


def _eager(x: Tensor) -> bool:
    """Whether nobody watches what is computed of x: no compiler, no exporter, no tensor of another kind."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not traced and type(x) in (Tensor, nn.Parameter)


def _run(network: Network, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    # PyTorch offers no other way to see hooks that are set for all modules at once
    hooked = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    if not _eager(x) or hooked or list(network.__dict__["_modules"]) != _PARTS:
        return plain(x)
    if kernels_run_on(x.device):
        return _FUSED.run(network, x)
    return plain(x) if x.device.type != "cpu" or torch.is_grad_enabled() else _CPU.run(network, x)
