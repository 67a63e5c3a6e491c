"""The process that others are forked from: small, without a model, and with the imports done once for all of them.

A process that holds a model and a GPU takes about a tenth of a second to fork, pages of its memory are copied when it
writes to them afterwards, and CUDA must not be used in its children.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def start(modules: Sequence[str]) -> None:
    """Start it, if it is not running, and have it import modules while this process goes on."""
    if METHOD == "forkserver":
        from multiprocessing import forkserver

        forkserver.set_forkserver_preload(list(modules))
        forkserver.ensure_running()
