"""What happens when the system, a scheduler or a person asks a run to stop: it saves first."""

from __future__ import annotations

import signal
import threading
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

from gsqtok.data.workers import STOP_SIGNALS

EXIT_STATUS = 75  # the system's "temporary failure": run the same command again, with --resume
ECHO_SECONDS = 5.0  # torchrun passes on what it is sent, so ranks get twice what a scheduler sends to all processes


class InterruptedRunError(RuntimeError):
    """A run was asked to stop, and has saved a checkpoint first.

    Attributes:
        exit_status: with which a command ends.
    """

    exit_status = EXIT_STATUS


class Interruption:
    """Notes the first signal that asks the run to stop; a second one, seconds later, ends it at once.

    A context manager. Outside of the main thread, where Python handles no signals, it notes nothing.

    Attributes:
        name: of the signal, None as long as there was none.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._noted = 0.0  # when, in seconds
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for name in STOP_SIGNALS:
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name is None:
            self.name, self._noted = signal.Signals(number).name, monotonic()
        elif monotonic() - self._noted > ECHO_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
