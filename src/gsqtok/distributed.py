"""Ranks of torch.distributed, and what all of them know together. Without a process group there is one rank."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
LOCK = re.compile(r"\.rank-\d+\.lock")  # names of the files by which ranks hold a folder; they stay there, empty


def rank_and_size() -> tuple[int, int]:
    """This process's rank, and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def alone(folder: Path, rank: int, command: str) -> Iterator[None]:
    """Hold a folder for a rank of a command; a second one in the same folder is refused. A killed one leaves no lock.

    Raises:
        ValueError: another command holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f".rank-{rank}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{folder} is being written by another {command}: wait for it, or choose another folder for the output"
        ) from None
    except NotImplementedError:  # a disk without locks
        pass
    try:
        yield
    finally:
        lock.release()


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of ``x`` over all ranks; ``x`` itself where there is one process. No gradient flows."""
    if rank_and_size()[1] == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of ``x`` over all ranks, with the gradient of this rank's own part.

    Data-parallel training averages gradients over the ranks, and the mean of those of f(mean(x)) with respect to each
    rank's x is the gradient of the whole: no second communication is needed on the way back.
    """
    _, ranks = rank_and_size()
    return x if ranks == 1 else sum_over_ranks(x) / ranks + (x - x.detach())


def on_first(part: Any, compute: Callable[[list[Any]], T]) -> T:
    """Gather each process's ``part`` on the first one, compute there, and hand the outcome to all.

    Every process must call it. An error of ``compute`` is raised in all of them: none is left waiting.
    """
    rank, ranks = rank_and_size()
    if ranks == 1:
        return compute([part])
    parts: list[Any] | None = [None] * ranks if rank == 0 else None
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
    return outcome[0]  # type: ignore[no-any-return]
