"""Nested groups: how many of a position's groups a decoder gets in training, drawn at random.

Nested dropout: Rippel et al. 2014, "Learning Ordered Representations with Nested Dropout", arXiv 1402.0915. Which loss
each number of groups contributes is the schedule's choice: a weight on the losses of examples with k groups would have
the same expectation as drawing k more often, with more noise.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["uniform", "geometric"]
RATIO = 0.5  # of a geometric schedule: how much rarer one group less is


def probabilities(groups: int, schedule: Schedule, full: float) -> list[float]:
    """Return the probability of each number of groups, from 1 to G.

    Args:
        groups: G.
        schedule: "uniform", or "geometric", in proportion to 2^k.
        full: share that keeps all groups whatever the schedule says.
    """
    weights = [RATIO ** (groups - k) if schedule == "geometric" else 1.0 for k in range(1, groups + 1)]
    shares = [(1 - full) * weight / sum(weights) for weight in weights]
    shares[-1] += full
    return shares


def count_channels(counts: Tensor, groups: int) -> Tensor:
    """Say how many groups each position has in channels of their own: (B, h, w) from 1 to G -> (B, G, h, w) float32.

    The channel of the count is 1, all others are 0: what a convolution makes of it is a learned vector of each count,
    and its mean over positions, which adaptive norms look at, is that of their vectors.
    """
    numbers = torch.arange(1, groups + 1, device=counts.device)
    return (counts.unsqueeze(-1) == numbers).float().movedim(-1, 1)  # channels innermost, as quantized latents have


def draw_groups(latent: Tensor, groups: int, schedule: Schedule, full: float, mixed: float) -> Tensor:
    """Draw numbers of groups for a latent (B, ..., D): int64 that broadcasts with (B, ...).

    One for each example (of the first dimension), but for a share ``mixed`` of them one for each position. A latent
    (D,) is one example.
    """
    examples = latent.shape[:1] if latent.ndim > 1 else ()
    alike = (*examples, *(1,) * (latent.ndim - 1 - len(examples)))
    bounds = torch.tensor(probabilities(groups, schedule, full), device=latent.device).cumsum(0)[:-1]
    drawn = torch.rand(alike, device=latent.device)
    if mixed:
        by_position = torch.rand(alike, device=latent.device) < mixed
        drawn = torch.where(by_position, torch.rand(latent.shape[:-1], device=latent.device), drawn)
    return (drawn.unsqueeze(-1) >= bounds).sum(-1) + 1
