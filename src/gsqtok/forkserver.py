"""The process that decoding ones are forked from: small, without a model, and with the imports done once for all.

A process that holds a model and a GPU takes about a tenth of a second to fork, pages of its memory are copied when it
writes to them afterwards, and CUDA must not be used in its children.
"""

from __future__ import annotations

import multiprocessing

from gsqtok.data.workers import processors

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_PRELOAD = ("gsqtok.tokens.decoders",)


def start(workers: int | None = None) -> None:
    """Have it import what decoding needs while this process goes on; unless it runs, or no ``workers`` are wanted.

    Args:
        workers: see ``gsqtok.tokens.run.RunOptions``.
    """
    if METHOD == "forkserver" and (processors() > 1 if workers is None else workers > 0):
        from multiprocessing import forkserver

        forkserver.set_forkserver_preload(list(_PRELOAD))
        forkserver.ensure_running()
