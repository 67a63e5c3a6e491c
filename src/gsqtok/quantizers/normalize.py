"""Scaling vectors to length 1, whatever their length is."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-12  # below this length a gradient is that of this length, so that it stays finite


def unit(x: Tensor, order: float = 2.0) -> Tensor:
    """Vectors (..., d) over their norm: l2, or another by ``order``.

    Squares neither overflow nor vanish, as they do in ``F.normalize`` beyond 1e19 and below 1e-19. A zero vector, which
    has no direction, stays zero and lets its gradient pass as it is.
    """
    largest = x.detach().abs().amax(-1, keepdim=True)
    divisor = torch.where(largest > 0, largest, 1)
    # the value is x / largest; what is added is exactly zero, and has the gradient
    scaled = x.detach() / divisor + (x - x.detach()) / divisor.clamp_min(LEAST)
    norm = torch.linalg.vector_norm(scaled, ord=order, dim=-1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1)
