"""The networks by Triton kernels, on CUDA with channels innermost in memory (``torch.channels_last``).

What stands between convolutions runs in as few passes over memory as can be. The bias of a convolution belongs to these
stages too: PyTorch adds it in a pass of its own over the output, here it is added where the output is read next.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.acceleration.backend import Backend, Norm, Shifted, folded
from gsqtok.networks.compact import RMSNorm
from gsqtok.search.launches import kernels_run_on

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_LARGEST_CHANNELS = 4096  # a tile holds all channels of a row, several of them at a time on their way to the kernel


def fusible(x: Tensor) -> bool:
    """Whether the kernels can run on x (B, C, H, W)."""
    return (
        kernels_run_on(x.device)
        and x.dtype in _DTYPES
        and x.shape[1] <= _LARGEST_CHANNELS
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > 0
    )


class Fused(Backend):
    """Channels that come outermost stay so, and are left to PyTorch: turning them costs more than is gained."""

    def prepare(self, x: Tensor) -> Tensor | None:
        return x if fusible(x) else None

    def plain(self, x: Tensor) -> Tensor:
        return x

    def enter(self, conv: nn.Module, x: Tensor) -> Shifted:
        # where the weights' channels are innermost, those of the output are
        turned = isinstance(conv, nn.Conv2d) and fusible(conv.weight)
        return super().enter(conv, x.contiguous(memory_format=torch.channels_last) if turned else x)

    def convolve(self, conv: nn.Conv2d, x: Tensor) -> Shifted:
        return F.conv2d(x, conv.weight, None, conv.stride, conv.padding), conv.bias

    def normalise(self, x: Tensor, norm: Norm, shift: Tensor | None, dtype: torch.dtype) -> Tensor:
        return _kernels().GroupNorm.apply(x, *norm, shift, dtype)

    def add(self, x: Tensor, y: Tensor, shift: Tensor | None) -> Tensor:
        return _kernels().Add.apply(x, y, shift)

    def repeat(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        # four 2x2 convolutions, one for each pixel of a block, of one padded input
        weight = folded(conv.weight)
        weight = weight.view(*weight.shape[:2], 2, 2, 2, 2)  # (O, I, tap, pixel, tap, pixel)
        weight = weight.permute(3, 5, 0, 1, 2, 4).flatten(0, 2)
        weight = weight.to(conv.weight.dtype, memory_format=torch.channels_last)
        return _kernels().Interleave.apply(F.conv2d(x, weight, padding=1), cast(Tensor, conv.bias).repeat(4), 1)

    def rms_norm(self, norm: RMSNorm, x: Tensor) -> Tensor:
        """In one pass."""
        from gsqtok.acceleration.rms_norm_triton import RMSNormSiLU

        return RMSNormSiLU.apply(x, norm.weight, norm.bias, norm.eps)

    def interleave(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        return _kernels().Interleave.apply(*self.convolve(conv, x), 0)


def _kernels() -> Any:
    from gsqtok.acceleration import fused_triton  # imports Triton, which not every machine has

    return fused_triton
