"""Results of several evaluations beside each other: labels, a table, plots, and what forbids comparing them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gsqtok.evaluation.report.metrics import METRICS, base_of, metric_of
from gsqtok.evaluation.report.plots import COLOURS, legend, line, logarithmic_y, panels, powers_of_two
from gsqtok.evaluation.result import Result, differences
from gsqtok.io import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Each says nearly what another column says.
_HIDDEN = {"mse", "psnr_pooled", "entropy_bits", "inception_score_std"}


@dataclass
class Comparison:
    """Results that are looked at together.

    Attributes:
        results: at least one.
        labels: a short name for each, all different.
        paths: the file of each; images lie relative to it.
        unlike: by label, why a result must not be compared with the first, one line each; empty where it may be.
    """

    results: list[Result]
    labels: list[str]
    paths: list[Path]
    unlike: dict[str, list[str]]

    @classmethod
    def load(cls, paths: Sequence[str | Path]) -> Comparison:
        """Read the files that ``gsqtok evaluate -o`` wrote.

        Raises:
            ValueError: no file, one named twice, or (`ResultError`) one that is no result of an evaluation.
            FileNotFoundError: no such file.
        """
        files = [Path(path) for path in paths]
        if not files:
            raise ValueError("nothing to compare: name the files that `gsqtok evaluate -o` wrote")
        resolved = [file.resolve() for file in files]
        if twice := [file for i, file in enumerate(files) if resolved[i] in resolved[:i]]:
            raise ValueError(f"{twice[0]} is named twice")
        results = [Result.load(file) for file in files]
        labels = _labels(results, files)
        pairs = zip(labels, results, strict=True)
        return cls(results, labels, files, {label: differences(result, results[0]) for label, result in pairs})

    @property
    def warnings(self) -> list[str]:
        """Why results must not be compared with the first; those that differ from it in the same share a line."""
        alike: dict[str, list[str]] = {}
        for label, lines in self.unlike.items():
            if lines:
                alike.setdefault(printable("; ".join(lines)), []).append(label)
        return [
            f"{', '.join(labels)} and {self.labels[0]} were not measured alike: {reasons}"
            for reasons, labels in alike.items()
        ]

    def marked(self, label: str, text: str) -> str:
        """Add an asterisk to what stands for a result that must not be compared with the first."""
        return f"{text} *" if self.unlike[label] else text

    def metrics(self) -> pd.DataFrame:
        """Make the table: a row for each label, a column for each metric that any result has.

        Bits per pixel come first, then quality, what is not known, codebook, speed; nan where a metric is not defined.
        """
        order = {name: place for place, name in enumerate(METRICS)}
        unknown = order["usage"] - 0.5
        measured = (name for result in self.results for name in result.metrics if name not in _HIDDEN)
        names = dict.fromkeys(["bits_per_pixel", *measured])
        return self.table(sorted(names, key=lambda name: order.get(base_of(name) or "", unknown)))

    def table(self, columns: Sequence[str]) -> pd.DataFrame:
        """Make a table with these metrics, among which may be the model's number of parameters."""
        rows = [
            {"parameters": r.model.get("parameters"), **r.metrics, "bits_per_pixel": r.bits_per_pixel}
            for r in self.results
        ]
        table = pd.DataFrame(rows, index=pd.Index(self.labels, name="model")).reindex(columns=list(columns))
        return table.apply(pd.to_numeric, errors="coerce")


def _labels(results: list[Result], paths: list[Path]) -> list[str]:
    """The models' names; where they repeat, with the bits per pixel, and where those repeat, too, with the file."""
    labels = [printable(str(r.model["name"] or path.stem)) for r, path in zip(results, paths, strict=True)]
    bits = [r.bits_per_pixel if r.model["bits_per_pixel"] is None else r.model["bits_per_pixel"] for r in results]
    longer = [label if b is None else f"{label} @ {b:.3g}" for label, b in zip(labels, bits, strict=True)]
    labels = [long if labels.count(label) > 1 else label for label, long in zip(labels, longer, strict=True)]
    whole = [f"{label} ({printable(str(path))})" for label, path in zip(labels, paths, strict=True)]
    return [long if labels.count(label) > 1 else label for label, long in zip(labels, whole, strict=True)]


def rate_distortion(comparison: Comparison, table: pd.DataFrame | None = None) -> Figure | None:
    """Draw quality over bits per pixel, one panel a metric; results of one name are joined by a line.

    Codecs are grey, for they are what the tokenizers are held against; what was measured unlike the first result is
    marked, and no line joins it to the others of its name. None where no result has what it takes.

    Args:
        comparison: the results.
        table: of their metrics, those to draw; None means all.
    """
    table = comparison.metrics() if table is None else table
    table = table[table["bits_per_pixel"] > 1e-6]
    names = [name for name in table.columns if metric_of(name).better and table[name].notna().any()]
    if not names:
        return None
    lines, codecs = {}, set()
    for label, result in zip(comparison.labels, comparison.results, strict=True):
        lines[label] = comparison.marked(label, str(result.model["name"]))
        if result.model["fingerprint"] is None:
            codecs.add(lines[label])
    order = sorted(dict.fromkeys(lines.values()), key=codecs.__contains__)
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        known = table[table[name].notna()].sort_values("bits_per_pixel")
        for number, model in enumerate(order):
            points = known[known.index.map(lines) == model]
            if len(points):
                line(axis, number, model, points["bits_per_pixel"], points[name], yardstick=model in codecs)
        metric = metric_of(name)
        title = f"{metric.title} ({'higher' if metric.better > 0 else 'lower'} is better)"
        axis.set_title("\n".join(textwrap.wrap(title, 40)))
        axis.set_xlabel("bits/px")
        powers_of_two(axis, known["bits_per_pixel"])
    legend(figure, axes)
    return figure


def codebook_usage(comparison: Comparison) -> Figure | None:
    """Draw how often each codeword was used, the most used first, both axes logarithmic."""
    books = [(label, r.codebook) for label, r in zip(comparison.labels, comparison.results, strict=True) if r.codebook]
    if not books:
        return None
    figure, (axis,) = panels(1)
    for number, (label, book) in enumerate(books):
        counts, size = np.asarray(book["counts_sorted"], dtype=float), book["codebook_size"]
        ranks = 1 + np.linspace(0, size - 1, len(counts)).round()
        share = 100 * counts / max(1, book.get("tokens", book["positions"] * book["groups"]))
        used = share > 0
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(ranks[used], share[used], color=colour, linewidth=1.8, label=label)
        axis.plot([1, size], [100 / size] * 2, color=colour, linewidth=0.9, linestyle="--")
    powers_of_two(axis, [1, max(book["codebook_size"] for _, book in books)])
    logarithmic_y(axis)
    axis.set(xlabel="codeword, by rank", ylabel="share of the tokens, %")
    axis.set_title("Use of the codebook (dashed: all equal)")
    legend(figure, [axis])
    return figure


def per_image(comparison: Comparison) -> Figure | None:
    """Draw each image's PSNR, the first result against every other model: of its rates, the one nearest in bits."""
    first, *others = comparison.results
    ours = _psnr(first)
    pairs: dict[str, tuple[float, str, pd.DataFrame]] = {}
    for label, other in zip(comparison.labels[1:], others, strict=True):
        both = pd.concat([ours, _psnr(other)], axis=1, join="inner", keys=["ours", "theirs"]).dropna()
        name, apart = str(other.model["name"]), abs(math.log(_rate(other) / _rate(first)))
        if len(both) and (name not in pairs or apart < pairs[name][0]):
            pairs[name] = (apart, label, both)
    if not pairs:
        return None
    figure, axes = panels(len(pairs))
    for axis, (_, label, both) in zip(axes, pairs.values(), strict=True):
        low, high = both.min(axis=None), both.max(axis=None)
        margin = 0.05 * (high - low) or 1
        span = [low - margin, high + margin]
        axis.plot(span, span, color=COLOURS[-1], linewidth=0.9)
        axis.scatter(both["ours"], both["theirs"], s=22, color=COLOURS[0], alpha=0.75, linewidths=0)
        axis.set(xlim=span, ylim=span, aspect="equal", xlabel=f"{comparison.labels[0]}, dB", ylabel=f"{label}, dB")
        wins = int((both["theirs"] > both["ours"]).sum())
        axis.set_title(f"PSNR: {label} ahead on {wins} of {len(both)}", fontsize=10)
    return figure


PLOTS: dict[str, Callable[[Comparison], Figure | None]] = {
    "rate_distortion": rate_distortion,
    "codebook_usage": codebook_usage,
    "per_image": per_image,
}
"""Every plot, by the name of its file."""


def _psnr(result: Result) -> pd.Series:
    columns = result.per_image if "psnr" in result.per_image else {"key": [], "psnr": []}
    return pd.Series(columns["psnr"], index=columns["key"], dtype=float)


def _rate(result: Result) -> float:
    """Bits per pixel; 1 where they are not known, so that rates can be compared."""
    bits = result.bits_per_pixel
    return bits if bits is not None and bits > 1e-6 else 1.0
