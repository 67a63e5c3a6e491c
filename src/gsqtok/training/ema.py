"""Exponential moving average of weights."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class Average(nn.Module, Generic[Model]):
    """An exponential moving average of a model's weights and buffers.

    As torch's ``AveragedModel`` keeps one, but nothing in it waits for the device. Buffers that count (integers) are
    copied. The decay rises as (1 + n) / (10 + n) until it reaches ``decay``, so that the random first weights are
    forgotten within a short run too.

    Args:
        model: to average.
        decay: of the average.
        rising: False keeps the decay constant from the first step, as the paper's own code does: of the model as it is
            now, ``decay**n`` is left after n steps.

    Attributes:
        module: the averaged model, a copy.
        n_averaged: updates so far, on the CPU.
    """

    module: Model
    n_averaged: Tensor

    def __init__(self, model: Model, decay: float, rising: bool = True) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)
        self.decay = decay
        self.rising = rising
        self.register_buffer("n_averaged", torch.tensor(0))

    @torch.no_grad()
    def update_parameters(self, model: Model) -> None:
        """Take in the model as it is now."""
        n = int(self.n_averaged)
        share = 1 - self.decay
        if self.rising:
            share = max(share, 1 - (1 + n) / (10 + n)) if n else 1.0
        averages, current = ([*chain(m.parameters(), m.buffers())] for m in (self.module, model))
        counts = [i for i, x in enumerate(averages) if not x.is_floating_point()]
        if counts:
            torch._foreach_copy_([averages[i] for i in counts], [current[i] for i in counts])
        floats = [i for i, x in enumerate(averages) if x.is_floating_point()]
        torch._foreach_lerp_([averages[i] for i in floats], [current[i] for i in floats], share)
        self.n_averaged += 1
