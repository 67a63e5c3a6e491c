"""Exponential moving average of weights."""

from __future__ import annotations

from itertools import compress

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights and buffers, on torch's ``AveragedModel``.

    Buffers that count (integers) are copied. The decay rises as (1 + n) / (10 + n) until it reaches ``decay``, so that
    the random first weights are forgotten within a short run too.
    """

    def update(averages: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        n = count.float()  # stays on its device: a number would make the host wait for it
        rate = 1 - torch.clamp((1 + n) / (10 + n), max=decay)
        floating = [average.is_floating_point() for average in averages]
        torch._foreach_lerp_(list(compress(averages, floating)), list(compress(current, floating)), rate)
        for average, value, is_floating in zip(averages, current, floating, strict=True):
            if not is_floating:
                average.copy_(value)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
