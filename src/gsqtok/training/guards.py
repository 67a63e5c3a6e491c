"""Guards: what stops a run that has gone wrong before it spoils its weights."""

from __future__ import annotations

import logging
import math

from torch import Tensor

log = logging.getLogger("gsqtok.training")


class TrainingDivergedError(RuntimeError):
    """Too many steps in a row had a loss or gradient that was not finite."""


class FiniteGuard:
    """Skips updates whose loss or gradient is NaN or infinite, and stops the run after ``limit`` in a row.

    The gradient's norm is the same on every rank (it is taken after the ranks' gradients were averaged), so all ranks
    skip together.
    """

    def __init__(self, limit: int = 20) -> None:
        self.limit = limit
        self.skipped = 0
        self.in_a_row = 0

    def allows(self, step: int, gradient_norm: Tensor | float, terms: dict[str, Tensor]) -> bool:
        """Whether the update may be made.

        Raises:
            TrainingDivergedError: the limit is reached; the message names the step and the terms that blew up.
        """
        if math.isfinite(float(gradient_norm)):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        broken = [name for name, term in terms.items() if name != "total" and not math.isfinite(float(term))]
        culprit = f"loss term {', '.join(broken)}" if broken else "the gradient"
        log.warning("step %d: %s is not finite, update skipped (%d so far)", step, culprit, self.skipped)
        if self.in_a_row >= self.limit:
            raise TrainingDivergedError(f"{self.limit} steps in a row up to step {step} were not finite: {culprit}")
        return False
