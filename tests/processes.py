"""Processes that have PyTorch and this package as soon as they start.

Importing both costs a process seconds, and the suite starts many. One server imports them once and forks: what comes
out are real processes, with an environment of their own, files for what they print and an exit status, and can be
killed.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

import torch.multiprocessing
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import gsqtok
from gsqtok.data.workers import STOP_SIGNALS

SOURCE = str(Path(gsqtok.__file__).parents[1])
PRELOADED = [
    "gsqtok.training.trainer",
    "gsqtok.tokens.decoders",
    "gsqtok.tokens.run",
    "gsqtok.evaluation.run",
    "timm",
    "datasets",
    "jsonargparse",
    "torch.utils.tensorboard",
]
# For commands in processes of their own: this tree, one thread, which rounds alike everywhere, and no device.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCE, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
STREAMS = ("stdout", "stderr")
PATIENCE = 900  # seconds after which what hangs is given up; nothing that works comes near, however busy the machine

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def serve() -> None:
    """Start the server, if it is not there yet; what it imports reads the environment that it starts with."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def spawn(function: Any, arguments: tuple[Any, ...], nprocs: int = 2) -> None:
    """``torch.multiprocessing.spawn``, from the server: run ``function(rank, *arguments)`` and raise what it raises."""
    serve()
    torch.multiprocessing.start_processes(function, arguments, nprocs=nprocs, start_method="forkserver")


class Command:
    """``gsqtok ARGUMENTS`` running in a process of its own.

    Args:
        arguments: of the command line.
        environment: added to this process's.
        before: called in the new process first, to break something there; a function of a module, to be pickled.
    """

    def __init__(
        self,
        arguments: Sequence[Any],
        environment: Mapping[str, str] = ENVIRONMENT,
        before: Callable[[], None] | None = None,
    ) -> None:
        serve()
        self._printed = tempfile.TemporaryDirectory()
        self._arguments = [str(argument) for argument in arguments]
        files = [f"{self._printed.name}/{name}" for name in STREAMS]
        self._process = _context.Process(
            target=_run, args=(self._arguments, os.environ | dict(environment), *files, before)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, None while it runs; negative after a signal."""
        return self._process.exitcode

    @property
    def ended(self) -> int:
        """What ``multiprocessing.connection.wait`` can wait for."""
        return self._process.sentinel

    def kill(self) -> None:
        """As ``kill -9``."""
        self._process.kill()

    def finish(self, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Wait for the end.

        Raises:
            TimeoutError: it had not ended after ``timeout`` seconds, and was killed.
        """
        self._process.join(timeout)
        if late := self.poll() is None:
            self.kill()
            self._process.join()
        out, err = (Path(self._printed.name, name).read_text() for name in STREAMS)
        self._printed.cleanup()
        if late:
            raise TimeoutError(f"gsqtok {' '.join(self._arguments)} did not end in {timeout} s\n{err}")
        return subprocess.CompletedProcess(self._arguments, self.poll(), out, err)


def run(
    arguments: Sequence[Any],
    environment: Mapping[str, str] = ENVIRONMENT,
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``gsqtok ARGUMENTS`` to its end."""
    return Command(arguments, environment, before).finish()


def run_ranks(
    arguments: Sequence[Any], before: Callable[[], None] | None = None, count: int = 2
) -> list[subprocess.CompletedProcess[str]]:
    """Run ``gsqtok ARGUMENTS`` in processes that find each other as torchrun's do, each to its end.

    Where one fails and the others do not within two minutes, they are killed, as torchrun would.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    world |= ENVIRONMENT | {"LOCAL_WORLD_SIZE": str(count)}
    ranks = [Command(arguments, world | {"RANK": str(r), "LOCAL_RANK": str(r)}, before) for r in range(count)]
    patience = PATIENCE
    while running := [rank for rank in ranks if rank.poll() is None]:
        if any(rank.poll() for rank in ranks):
            patience = 120
        if not connection.wait([rank.ended for rank in running], patience):
            for rank in running:
                rank.kill()
            break
    return [rank.finish() for rank in ranks]


def torchrun(
    arguments: Sequence[Any], before: Callable[[], None] | None = None, count: int = 2
) -> list[subprocess.CompletedProcess[str]]:
    """The same by PyTorch's launcher: its agent, its rendezvous and its environment, with processes from the server."""
    serve()
    arguments = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # as --standalone
            run_id="tests",
            start_method="forkserver",
            logs_specs=DefaultLogsSpecs(folder, redirects=Std.ALL),
        )
        failed = {}
        try:
            elastic_launch(config, _rank)(arguments, before)
        except ChildFailedError as error:
            failed = {rank: failure.exitcode for rank, failure in error.failures.items()}
        printed = [Path(folder).glob(f"*/attempt_0/{rank}/{name}.log") for rank in range(count) for name in STREAMS]
        texts = [file.read_text() for (file,) in printed]
    codes = [failed.get(rank, 0) for rank in range(count)]
    return [
        subprocess.CompletedProcess(arguments, code, out, err)
        for code, out, err in zip(codes, texts[::2], texts[1::2], strict=True)
    ]


@dataclass(frozen=True)
class Killed:
    """Have a command killed at a moment that no clock decides: just before its n-th change of a folder's files.

    A change is what Python opens for writing, makes, renames or removes. Between two of them the folder stays as it
    is, whatever else a process does.

    Args:
        folder: the folder.
        change: which, from 1 on.
    """

    folder: Path
    change: int

    def __call__(self) -> None:
        """Called in the new process."""
        changes = itertools.count(1)

        def see(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
                return
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
            if str(arguments[0]).startswith(str(self.folder)) and next(changes) == self.change:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(see)


def _run(
    arguments: list[str], environment: dict[str, str], stdout: str, stderr: str, before: Callable[[], None] | None
) -> None:
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    # the server may have been started by a command of this process, which blocks them for decoding processes
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {getattr(signal, name) for name in STOP_SIGNALS})
    _rank(arguments, before)


def _rank(arguments: list[str], before: Callable[[], None] | None) -> None:
    sys.argv = ["gsqtok", *arguments]
    if before is not None:
        before()
    from gsqtok.cli import main

    if status := main():
        sys.exit(status)
