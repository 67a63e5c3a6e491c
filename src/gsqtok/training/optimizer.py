"""Learning rate and optimiser, as their configuration says."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from gsqtok.training.config import OptimizerConfig
from gsqtok.training.muon import Muon


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 1."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "linear":
        return config.learning_rate * (1 - progress)
    return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def build_optimizer(
    network: nn.Module, config: OptimizerConfig, device: torch.device, record: bool = True
) -> Optimizer:
    """The optimiser over the parameters that are trained; ``record``: a CUDA graph may make its updates."""
    shared: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    optimizer: Optimizer
    if config.name == "muon":
        optimizer = Muon(network, **shared, record=record)
    else:
        trained = [p for p in network.parameters() if p.requires_grad]
        optimizer = AdamW(trained, **shared, fused=device.type == "cuda")
    optimizer.register_load_state_dict_pre_hook(_as_parameters_lie)
    return optimizer


def _as_parameters_lie(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Lay the state out as the parameters lie, which fused AdamW needs; a checkpoint may come from another device."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    laid = {
        number: {
            name: torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
            for name, value in state["state"][number].items()
        }
        for number, parameter in zip(numbers, parameters, strict=True)
        if number in state["state"]
    }
    return state | {"state": laid}


def update_where(finite: Tensor, optimizer: AcceleratedOptimizer) -> None:
    """Make an optimiser's update if ``finite``, a bool scalar, holds.

    Where it lies on a GPU, nobody waits for it: fused AdamW and Muon leave the update out there (``found_inf``, by
    which gradient scaling does the same).
    """
    if finite.is_cuda:
        optimizer.optimizer.found_inf = (~finite).float()
        optimizer.step()
    elif finite:
        optimizer.step()
