"""What happens when the system, a scheduler or a person asks a run to stop: it saves first."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")  # of a scheduler, of Ctrl-C, and of Slurm's --signal
EXIT_STATUS = 75  # the system's "temporary failure": run the same command again, with --resume


class InterruptedRunError(RuntimeError):
    """A run was asked to stop, and has saved a checkpoint first.

    Attributes:
        exit_status: with which a command ends.
    """

    exit_status = EXIT_STATUS


class Interruption:
    """Notes the first signal that asks the run to stop; a second one ends it at once.

    A context manager. Outside of the main thread, where Python handles no signals, it notes nothing.

    Attributes:
        name: of the signal, None as long as there was none.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                if number := getattr(signal, name, None):  # Windows has no SIGUSR1
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
