"""Guards: what stops a run that has gone wrong before it spoils its weights, and what says that it is going wrong."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

log = logging.getLogger("gsqtok.training")
_AHEAD = 4  # steps that the host may be ahead of what it knows


class _Judged(NamedTuple):
    """A step whose answer is on its way from the device."""

    step: int
    answer: Tensor
    copied: torch.cuda.Event
    names: list[str]
    values: Tensor


class TrainingDivergedError(RuntimeError):
    """Too many steps in a row had a loss or gradient that was not finite."""


class FiniteGuard:
    """Skips updates whose loss or gradient is NaN or infinite, and stops the run after ``limit`` in a row.

    Args:
        limit: so many skipped steps in a row end the run.
        agreed: whether something holds on every rank (a bool scalar each), so that all ranks skip together.
        last_checkpoint: the newest checkpoint, for the message that ends the run.

    Nobody waits for a GPU to tell whether a step was finite: the GPU itself leaves the update out (``update_where``),
    and the count follows a few steps later.
    """

    def __init__(
        self,
        limit: int = 20,
        agreed: Callable[[Tensor], Tensor] = lambda holds: holds,
        last_checkpoint: Callable[[], Path | None] = lambda: None,
    ) -> None:
        self.limit = limit
        self.agreed = agreed
        self.last_checkpoint = last_checkpoint
        self.skipped = 0
        self.in_a_row = 0
        self._unsettled: deque[_Judged] = deque()

    def allows(self, step: int, named: dict[str, Tensor]) -> Tensor:
        """Whether the step's updates may be made: a bool scalar, on the device of the values.

        Args:
            step: the step.
            named: losses and gradient norms of every network by name, scalars.

        Raises:
            TrainingDivergedError: the limit is reached; the message names the step and what blew up.
        """
        values = torch.stack([value.detach().float() for value in named.values()])
        finite = self.agreed(values.isfinite().all())
        if not finite.is_cuda:
            self._count(step, bool(finite), named.keys(), values)
            return finite
        answer = finite.to("cpu", non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._unsettled.append(_Judged(step, answer, copied, list(named), values))
        while self._unsettled and (len(self._unsettled) > _AHEAD or self._unsettled[0].copied.query()):
            self._settle_first()
        return finite

    def settle(self) -> None:
        """Count every step so far, waiting for the device."""
        while self._unsettled:
            self._settle_first()

    def _settle_first(self) -> None:
        judged = self._unsettled.popleft()
        judged.copied.synchronize()
        self._count(judged.step, bool(judged.answer), judged.names, judged.values)

    def _count(self, step: int, finite: bool, names: Iterable[str], values: Tensor) -> None:
        if finite:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        broken = [name for name, value in zip(names, values.tolist(), strict=True) if not math.isfinite(value)]
        terms = [name for name in broken if name != "total" and not name.endswith("gradient_norm")]
        if terms:
            culprit = f"loss term {', '.join(terms)}"
        elif broken:
            culprit = " and ".join(
                "the discriminator's gradient" if name.startswith("discriminator") else "the gradient"
                for name in broken
                if name.endswith("gradient_norm")
            )
        else:
            culprit = "a loss on another rank"
        log.warning("step %d: %s is not finite, update skipped (%d so far)", step, culprit, self.skipped)
        if self.in_a_row >= self.limit:
            last = self.last_checkpoint()
            go_on = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
            raise TrainingDivergedError(
                f"{self.limit} steps in a row up to step {step} were not finite: {culprit}; {go_on}"
            )

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        self.settle()
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take it back."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


class CollapseWatch:
    """Says when the codebook collapses: usage or perplexity falls below a share of the best so far.

    Feed it metrics that were counted over equally many images (an epoch): both rise with the number of positions.
    """

    def __init__(self, share: float = 0.5) -> None:
        self.share = share
        self.best: dict[str, float] = {}
        self.fallen: set[str] = set()

    def see(self, step: int, metrics: dict[str, float]) -> str | None:
        """Take new metrics; a warning when one becomes low, else None."""
        messages = []
        for name, value in metrics.items():
            best = self.best[name] = max(value, self.best.get(name, value))
            if value >= self.share * best:
                self.fallen.discard(name)
            elif name not in self.fallen:
                self.fallen.add(name)
                messages.append(f"codebook {name} fell to {value:.4g}, from {best:.4g} at its best")
        return f"step {step}: {'; '.join(messages)}: the codebook is collapsing" if messages else None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": dict(self.best), "fallen": sorted(self.fallen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.best, self.fallen = dict(state["best"]), set(state["fallen"])


class DominanceWatch:
    """Says when the discriminator wins outright: it tells nearly every reconstruction from an image.

    The adversarial term then no longer says what would be better. Judged over at least ``steps`` steps, since a single
    batch is often told apart without an error.

    Args:
        accuracy: the share of right answers from which on it has won.
        steps: the fewest steps that it is judged by.
    """

    def __init__(self, accuracy: float = 0.99, steps: int = 100) -> None:
        self.accuracy = accuracy
        self.steps = steps
        self.sum = 0.0
        self.count = 0
        self.winning = False

    def see(self, step: int, accuracy: float, steps: int) -> str | None:
        """Take the mean accuracy of the last ``steps`` steps; a warning when it begins to win, else None."""
        self.sum += accuracy * steps
        self.count += steps
        if self.count < self.steps:
            return None
        mean, count = self.sum / self.count, self.count
        self.sum, self.count = 0.0, 0
        was_winning, self.winning = self.winning, mean >= self.accuracy
        if was_winning or not self.winning:
            return None
        return (
            f"step {step}: the discriminator wins outright: {mean:.2%} of its answers were right over {count} steps, "
            "so the adversarial term teaches nothing"
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"sum": self.sum, "count": self.count, "winning": self.winning}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.sum, self.count, self.winning = state["sum"], state["count"], state["winning"]
