"""A study's results: one row a run, and means over its seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gsqtok.evaluation.report.metrics import text_of
from gsqtok.io import atomic_write, json_values, read_json

FORMAT = "gsqtok-study-2"


class Value(NamedTuple):
    """A metric over the seeds of a setting; false, with a mean of nan, where there is none.

    ``spread`` is the standard deviation of a sample, nan for one seed.
    """

    mean: float
    spread: float = math.nan
    seeds: int = 1

    def __bool__(self) -> bool:
        return self.seeds > 0

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + (f" ± {self.spread:.2g}" if math.isfinite(self.spread) else "")


@dataclass(frozen=True)
class Row:
    """What became of a run.

    Attributes:
        varied: see ``Run``.
        metrics: by name; empty if the run is not done.
        state: "done", "diverged" (stopped by the guard against non-finite steps), "failed" or "not run".
        message: why, where it is not done.
        digest: of the run's configuration; the name of its folder ends with it.
    """

    varied: dict[str, Any]
    metrics: dict[str, float]
    state: str
    message: str = ""
    digest: str = ""

    def has(self, varied: dict[str, Any]) -> bool:
        """Tell whether these columns have these values."""
        return varied.items() <= self.varied.items()


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

    def rows_of(self, **varied: Any) -> list[Row]:
        """Return the rows whose varied columns have these values."""
        return [row for row in self.rows if row.has(varied)]

    def value(self, metric: str, **varied: Any) -> Value:
        """Average a metric over the done runs whose varied columns have these values."""
        found = pd.Series([row.metrics.get(metric) for row in self.rows_of(**varied)], dtype=float).dropna()
        return Value(found.mean(), found.std(), len(found))

    def values(self, column: str, **varied: Any) -> list[Any]:
        """Return the different values of a column, in order of appearance."""
        return list(dict.fromkeys(row.varied[column] for row in self.rows_of(**varied) if column in row.varied))

    def settings(self) -> list[dict[str, Any]]:
        """Return what varies but the seed, each combination once."""
        return [dict(pairs) for pairs in dict.fromkeys(map(_without_seed, self.rows))]

    def statistics(self) -> pd.DataFrame:
        """Return mean, standard deviation and number of seeds of each metric (two levels of columns), by setting."""
        metrics = pd.DataFrame([row.metrics for row in self.rows]).astype(float)
        places = {setting: place for place, setting in enumerate(dict.fromkeys(map(_without_seed, self.rows)))}
        if metrics.empty:
            return pd.DataFrame(index=range(len(places)), columns=pd.MultiIndex.from_product([[], ["mean"]]))
        return metrics.groupby([places[_without_seed(row)] for row in self.rows]).agg(["mean", "std", "count"])

    def save(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        with atomic_write(path) as temporary:
            content = json_values({"format": FORMAT} | asdict(self))
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read what ``save`` wrote.

        Raises:
            ValueError: another kind of file.
        """
        try:
            content = read_json(path)
        except ValueError as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is no result of gsqtok study, or one of another version")
        try:
            return cls(**content | {"rows": [Row(**row) for row in content["rows"]]})
        except (TypeError, LookupError) as error:
            raise ValueError(f"{path} is no result of gsqtok study: {error}") from error


def described(varied: dict[str, Any]) -> str:
    """Write what varies in a run: G 8, d 2, V 1,024."""
    return ", ".join(f"{column} {cell(value)}" for column, value in varied.items() if value != "")


def cell(value: Any) -> str:
    """Write a value of what varies."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def ranking(metric: str, values: dict[Any, Value], fewest: bool = False) -> str:
    """Write a metric of several settings, best first: ``gsq 20.1 ± 0.1, vq 19.9``; ``fewest``: the least is best."""
    best_first = sorted(values.items(), key=lambda item: item[1].mean, reverse=not fewest)
    return ", ".join(f"{name} {text_of(metric, value.mean, value.spread)}" for name, value in best_first)


def known(values: Iterable[tuple[Any, Value]]) -> dict[Any, Value]:
    """Leave out the values that are not there."""
    return {name: value for name, value in values if value}


def _without_seed(row: Row) -> tuple[tuple[str, Any], ...]:
    return tuple((column, value) for column, value in row.varied.items() if column != "seed")
