"""Processes that work for another one: how many there may be, how they start, and that they end when it does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any

# What asks a process to stop: Ctrl-C, a scheduler, Slurm's --signal. Windows has no SIGUSR1.
STOP_SIGNALS = tuple(name for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))

# A process with a model and a GPU takes a tenth of a second to fork, and CUDA must not be used in its children. The
# server that forks instead is small, and has done their imports.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def processors() -> int:
    """Count the processors of this process's share, of those that torchrun starts on a machine."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def start_server(workers: int | None = None) -> None:
    """Let the server of decoding processes do its imports while this process goes on.

    It ends with this process. Signals that ask a run to stop are blocked in it, for its death would end its children.

    Args:
        workers: how many processes there will be; None: one for each processor. It starts only if there are any.
    """
    if START_METHOD == "forkserver" and (processors() > 1 if workers is None else workers > 0):
        from multiprocessing import forkserver, resource_tracker

        forkserver.set_forkserver_preload(["gsqtok.tokens.decoders"])
        stop = {getattr(signal, name) for name in STOP_SIGNALS}
        resource_tracker.ensure_running()  # the server would start it, which unblocks signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, stop)  # what is started here inherits it
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(number: int = 0) -> None:
    """Let this process end when the one that started it says so or has gone, even if that was killed, and not before.

    A terminal's Ctrl-C and a scheduler's signals reach every process of a run. Here they are ignored: the parent may
    still need this process to end well, such as to save first.

    It may have been forked from a server; the system's own notion of a parent would then be that server.

    Args:
        number: of a worker; a ``DataLoader`` hands it to its ``worker_init_fn``. Not used.
    """
    if (parent := multiprocessing.parent_process()) is None:
        return
    pid = parent.pid
    ignore_all_but_sigterm()

    def obey() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != pid:
            pass
        os._exit(0)

    told = hasattr(signal, "sigwaitinfo")  # not on macOS, where a worker ends with anybody's SIGTERM
    if hasattr(signal, "pthread_sigmask"):  # before there are threads, which inherit it
        signal.pthread_sigmask(signal.SIG_BLOCK if told else signal.SIG_UNBLOCK, {signal.SIGTERM})
    if told:
        threading.Thread(target=obey, daemon=True).start()
    watch_parent()


def ignore_all_but_sigterm() -> None:
    """Leave the signals that reach every process of a run to the parent, which says what to do by SIGTERM."""
    for name in set(STOP_SIGNALS) - {"SIGTERM"}:
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def watch_parent() -> None:
    """Let this process end at once when the one that started it has gone, even if that was killed."""

    def watch(parent: Any) -> None:
        parent.join()
        os._exit(1)

    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=watch, args=(parent,), daemon=True).start()
