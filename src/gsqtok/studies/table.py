"""A study's results: one row a run, and means over its seeds."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gsqtok.evaluation.compare import figure_of
from gsqtok.io import atomic_write, json_values

FORMAT = "gsqtok-study-1"
TITLES = {
    "chord_error": ("error on the sphere", ".3g"),
    "training_memory_gib": ("training memory, GiB", ".1f"),
    "training_seconds": ("training, s", ".0f"),
    "skipped_steps": ("skipped steps", ".0f"),
    "quantizer_ms": ("quantizer, ms", ".3g"),
    "quantizer_step_ms": ("quantizer's training step, ms", ".3g"),
    "quantizer_memory_mib": ("quantizer's memory, MiB", ".3g"),
    "encode_ms": ("encode, ms", ".3g"),
    "decode_ms": ("decode, ms", ".3g"),
    "quantizer_share": ("quantizer / encode", ".1%"),
}


class Value(NamedTuple):
    """A figure over the seeds of a setting: ``spread`` is the standard deviation of a sample, None for one seed."""

    mean: float
    spread: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + (f" ± {self.spread:.2g}" if self.spread is not None else "")


@dataclass(frozen=True)
class Row:
    """What became of a run.

    Attributes:
        varied: see ``Run``.
        figures: by name; empty if the run is not done.
        state: "done", "diverged" (stopped by the guard against non-finite steps), "failed" or "not run".
        message: why, where it is not done.
        digest: of the run's configuration; the name of its folder ends with it.
    """

    varied: dict[str, Any]
    figures: dict[str, float]
    state: str
    message: str = ""
    digest: str = ""


@dataclass
class Table:
    """Results of a study at a scale.

    Attributes:
        study: its name.
        scale: its name.
        rows: one a run, in the study's order.
        setting: what all runs held: configuration, data, command.
        environment: versions and date of the newest run, the devices of all, the date of the first.
    """

    study: str
    scale: str
    rows: list[Row]
    setting: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def value(self, figure: str, **varied: Any) -> Value | None:
        """A figure's mean over the done runs whose varied columns have these values; None where there is none."""
        found = [
            row.figures[figure]
            for row in self.rows
            if _has(row, varied) and _number(row.figures.get(figure)) is not None
        ]
        if not found:
            return None
        spread = statistics.stdev(found) if len(found) > 1 else None
        return Value(statistics.fmean(found), spread, len(found))

    def values(self, column: str, **varied: Any) -> list[Any]:
        """The different values of a column, in order of appearance."""
        return list(
            dict.fromkeys(row.varied[column] for row in self.rows if column in row.varied and _has(row, varied))
        )

    def settings(self) -> list[dict[str, Any]]:
        """What varies but the seed, each combination once."""
        without = [{k: v for k, v in row.varied.items() if k != "seed"} for row in self.rows]
        return [dict(pairs) for pairs in dict.fromkeys(tuple(setting.items()) for setting in without)]

    def rows_of(self, **varied: Any) -> list[Row]:
        """The rows whose varied columns have these values."""
        return [row for row in self.rows if _has(row, varied)]

    def save(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        with atomic_write(path) as aside:
            content = json_values({"format": FORMAT} | asdict(self))
            aside.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read what ``save`` wrote.

        Raises:
            ValueError: another kind of file.
        """
        try:
            content = json.loads(path.read_text("utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is no result of gsqtok study")
        return cls(**content | {"rows": [Row(**row) for row in content["rows"]]})


def cell(value: Any) -> str:
    """A value of what varies, as people read it."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def described(varied: dict[str, Any]) -> str:
    """What varies in a run: G 8, d 2, V 1,024."""
    return ", ".join(f"{column} {cell(value)}" for column, value in varied.items() if value != "")


def title_of(name: str) -> str:
    """How a figure is called on the page."""
    return TITLES[name][0] if name in TITLES else figure_of(name).title


def shown(name: str, value: Value) -> str:
    """A figure with its spread, where that is not nothing."""
    form = TITLES[name][1] if name in TITLES else figure_of(name).format
    spread = None if value.spread is None else format(value.spread, form)
    return format(value.mean, form) + (f" ± {spread}" if spread and float(spread.strip("%").replace(",", "")) else "")


def _has(row: Row, varied: dict[str, Any]) -> bool:
    return all(column in row.varied and row.varied[column] == value for column, value in varied.items())


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
