"""Exponential moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gsqtok.training.sharding import local


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights and buffers, on torch's ``AveragedModel``.

    Buffers that count (integers) are copied. The decay rises as (1 + n) / (10 + n) until it reaches ``decay``, so that
    the random first weights are forgotten within a short run too.
    """

    def update(averages: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        # AveragedModel hands over tensors of one type at a time
        averages, current = [local(x) for x in averages], [local(x) for x in current]
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, current)
            return
        n = count.float()  # stays on its device: a number would make the host wait for it
        rate = 1 - torch.clamp((1 + n) / (10 + n), max=decay)
        torch._foreach_lerp_(averages, current, rate)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
