"""Exponential moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights and buffers, on torch's ``AveragedModel``.

    The decay rises as (1 + n) / (10 + n) until it reaches ``decay``, so that the random first weights are forgotten
    within a short run too.
    """

    def update(averages: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        n = int(count)
        torch._foreach_lerp_(averages, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
