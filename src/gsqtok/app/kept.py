"""What the page remembers of its visitors, within a budget of memory."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Values by keys that nobody can guess; where they take too much memory, the least recently used go first.

    Args:
        budget: bytes that all values may take together; the newest stays in any case.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, value: T, size: int, *, replaces: str | None = None) -> str:
        """Keep a value of so many bytes; returns its key.

        Args:
            value: the value.
            size: its bytes.
            replaces: the key of one that is not needed any more.
        """
        key = uuid.uuid4().hex
        with self._lock:
            if replaces is not None and replaces in self._values:
                self._bytes -= self._values.pop(replaces)[1]
            self._values[key] = value, size
            self._bytes += size
            while self._bytes > self.budget and len(self._values) > 1:
                _, (_, freed) = self._values.popitem(last=False)
                self._bytes -= freed
        return key

    def get(self, key: str | None) -> T | None:
        """The value of a key; None where it was never kept, or had to go."""
        with self._lock:
            if key is None or key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    @property
    def bytes(self) -> int:
        """What all values take together."""
        return self._bytes
