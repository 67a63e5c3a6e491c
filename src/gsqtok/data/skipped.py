"""The record of skipped images."""

from __future__ import annotations

import logging
from collections.abc import Iterable

_logger = logging.getLogger("gsqtok.data")


class SkipLog:
    """Counts skipped images and names each once in the log ``gsqtok.data``.

    Attributes:
        reasons: key -> reason, in the order of arrival.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        """Count the different images."""
        return len(self.reasons)

    def add(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Take the ``skipped`` of a batch; a key that came before (an earlier epoch) counts once."""
        for key, reason in skipped:
            if key not in self.reasons:
                self.reasons[key] = reason
                _logger.warning("skipped image %s: %s", key, reason)

    def summary(self) -> str:
        """Sum up in a line, such as ``2 images could not be read and were skipped: a.jpg (empty), b.png (cut)``."""
        if not self.reasons:
            return "every image could be read"
        named = [f"{key} ({reason})" for key, reason in list(self.reasons.items())[:5]]
        more = f" and {len(self) - len(named)} more" if len(self) > len(named) else ""
        plural, verb = ("", "was") if len(self) == 1 else ("s", "were")
        return f"{len(self)} image{plural} could not be read and {verb} skipped: {', '.join(named)}{more}"
