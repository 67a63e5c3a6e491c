"""Processes that work for another one: how many there may be, and that none outlives it."""

from __future__ import annotations

import multiprocessing
import os
import threading


def processors() -> int:
    """Processors of this process's share, of those that torchrun starts on a machine."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def end_with_parent(number: int = 0) -> None:
    """Let this process end when the one that started it has gone, even if that was killed.

    It may have been forked from a server; the system's own notion of a parent would then be that server.

    Args:
        number: of a worker; a ``DataLoader`` hands it to its ``worker_init_fn``. Not used.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
