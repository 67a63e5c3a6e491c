"""Less memory in training, for more time: residual blocks whose insides are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gsqtok.networks import Decoder, Encoder
from gsqtok.networks.blocks import DepthToSpaceUpsample, Downsample, NearestUpsample, ResidualBlock

T = TypeVar("T")


class RecomputedBlock(ResidualBlock):
    """A residual block that keeps nothing but its input for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """As a residual block."""
        return recomputed(super().forward, x)


def recomputed(function: Callable[..., T], *inputs: Any) -> T:
    """``function(*inputs)``, of which only the inputs are kept; it draws no random numbers."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def recompute(module: nn.Module, *, levels: int) -> None:
    """Let residual blocks of so many levels, largest images first, keep nothing but their input, in place.

    Args:
        module: a tokenizer, an encoder or a decoder.
        levels: 0 recomputes none.
    """
    for network in module.modules():
        if not isinstance(network, Encoder | Decoder):
            continue
        level = 0
        for block in network.blocks if isinstance(network, Encoder) else reversed(network.blocks):
            level += isinstance(block, Downsample | NearestUpsample | DepthToSpaceUpsample)
            if type(block) in (ResidualBlock, RecomputedBlock):
                block.__class__ = RecomputedBlock if level < levels else ResidualBlock
