"""What one process must see of all: images' metrics in the data set's order, features for their neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def process_count() -> tuple[int, int]:
    """Rank and number of processes of torch.distributed; (0, 1) without it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def on_first(part: Any, compute: Callable[[list[Any]], T]) -> T:
    """Gather each process's ``part`` on the first one, compute there, and hand the outcome to all.

    Every process must call it. An error of ``compute`` is raised in all of them: none is left waiting.
    """
    rank, processes = process_count()
    if processes == 1:
        return compute([part])
    parts: list[Any] | None = [None] * processes if rank == 0 else None
    dist.gather_object(part, parts, dst=0)
    outcome: list[Any] = [None, None]
    if parts is not None:
        try:
            outcome[0] = compute(parts)
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
