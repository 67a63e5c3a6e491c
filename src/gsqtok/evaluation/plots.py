"""Plots of a comparison: quality against bits per pixel, use of the codebook, and image by image."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from gsqtok.evaluation.compare import Comparison, bits_of, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plot = Callable[[Comparison], "Figure | None"]

# Okabe and Ito's colours, which colour-blind readers tell apart; grey for their black, unseen in the dark.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c8c8c")
MARKERS = "osD^vP*X"
DPI = 130
_PANELS_A_ROW = 3
_PANEL = (4.4, 3.5)  # inches


@contextmanager
def style(dark: bool = False) -> Iterator[None]:
    """Matplotlib's settings for these plots, on white or for a dark page."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'gsqtok[plots]'") from error
    ink, paper, faint = ("#d7dade", "#191c20", "#41464d") if dark else ("#22262b", "#ffffff", "#d9dce0")
    settings = {
        "figure.facecolor": paper,
        "axes.facecolor": paper,
        "savefig.facecolor": paper,
        "axes.edgecolor": faint,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "text.color": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "grid.color": faint,
        "grid.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "font.size": 10,
        "axes.titlesize": 11,
        "text.parse_math": False,  # a model may be called "$x"
    }
    with matplotlib.rc_context(settings):
        yield


def png(plot: Plot, comparison: Comparison, *, dark: bool = False) -> bytes | None:
    """A plot as a PNG file; None where the results hold nothing for it.

    Raises:
        ImportError: no matplotlib.
    """
    with style(dark):
        figure = plot(comparison)
        if figure is None:
            return None
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI)
        return file.getvalue()


def rate_distortion(comparison: Comparison) -> Figure | None:
    """Quality over bits per pixel, one panel a figure; results of one name are joined by a line."""
    names = [name for name in comparison.columns() if figure_of(name).better]
    panels = []
    for name in names:
        curves: dict[str, list[tuple[float, float]]] = {}
        for result in comparison.results:
            bits, value = bits_of(result), result.figures.get(name)
            if bits is not None and bits > 0 and value is not None and math.isfinite(value):
                curves.setdefault(str(result.model["name"]), []).append((bits, value))
        if curves:
            panels.append((name, curves))
    if not panels:
        return None
    models = list(dict.fromkeys(str(result.model["name"]) for result in comparison.results))
    figure, axes = _panels(len(panels), legend=True)
    for axis, (name, curves) in zip(axes, panels, strict=True):
        for model, points in curves.items():
            number = models.index(model)
            axis.plot(
                *zip(*sorted(points), strict=True),
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=9 if len(points) == 1 else 5,
                linewidth=1.5,
                label=model,
            )
        shown = figure_of(name)
        axis.set(xscale="log", title=f"{shown.title} ({'higher' if shown.better > 0 else 'lower'} is better)")
        axis.set_xlabel("bits/px")
        _plain_ticks(axis, [bits for points in curves.values() for bits, _ in points])
    legend(figure, axes)
    return figure


def codebook_usage(comparison: Comparison) -> Figure | None:
    """How often each codeword was used, the most used first, both axes logarithmic."""
    books = [(label, r.codebook) for label, r in zip(comparison.labels, comparison.results, strict=True) if r.codebook]
    if not books:
        return None
    figure, (axis,) = _panels(1, legend=len(books) > 1)
    for number, (label, book) in enumerate(books):
        counts = np.asarray(book["counts_sorted"], dtype=float)
        size = int(book["codebook_size"])
        ranks = 1 + np.linspace(0, size - 1, len(counts)).round()
        share = 100 * counts / max(1, int(book["positions"]) * int(book["groups"]))
        used = share > 0
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(ranks[used], share[used], color=colour, linewidth=1.8, label=label)
        axis.plot([1, size], [100 / size] * 2, color=colour, linewidth=0.9, linestyle="--")
    axis.set(xscale="log", yscale="log", xlabel="codeword, by rank", ylabel="share of the tokens, %")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter(lambda value, _: f"{value:g}")
        scale.set_minor_formatter(lambda value, _: "")
    axis.set_title("Use of the codebook (dashed: all equal)")
    if len(books) > 1:
        legend(figure, [axis])
    return figure


def per_image(comparison: Comparison) -> Figure | None:
    """PSNR of each image, the first result against every other model: of its rates, the one nearest in bits."""
    first, *others = comparison.results
    ours, our_bits = _psnr_by_key(first.per_image), bits_of(first) or 1
    pairs: dict[str, tuple[float, str, list[float], list[float]]] = {}
    for label, other in zip(comparison.labels[1:], others, strict=True):
        theirs = _psnr_by_key(other.per_image)
        if keys := [key for key in ours if key in theirs]:
            name, apart = str(other.model["name"]), abs(math.log((bits_of(other) or 1) / our_bits))
            if name not in pairs or apart < pairs[name][0]:
                pairs[name] = (apart, label, [ours[key] for key in keys], [theirs[key] for key in keys])
    if not pairs:
        return None
    figure, axes = _panels(len(pairs), legend=False)
    for axis, (_, label, x, y) in zip(axes, pairs.values(), strict=True):
        low, high = min(x + y), max(x + y)
        margin = 0.05 * (high - low) or 1
        span = [low - margin, high + margin]
        axis.plot(span, span, color=COLOURS[-1], linewidth=0.9)
        axis.scatter(x, y, s=22, color=COLOURS[0], alpha=0.75, linewidths=0)
        wins = sum(b > a for a, b in zip(x, y, strict=True))
        axis.set(xlim=span, ylim=span, aspect="equal", xlabel=f"{comparison.labels[0]}, dB", ylabel=f"{label}, dB")
        axis.set_title(f"PSNR: {label} ahead on {wins} of {len(x)}", fontsize=10)
    return figure


PLOTS: dict[str, Plot] = {
    "rate_distortion": rate_distortion,
    "codebook_usage": codebook_usage,
    "per_image": per_image,
}
"""Every plot, by the name of its file."""


def _psnr_by_key(columns: dict[str, list]) -> dict[str, float]:
    pairs = zip(columns.get("key", []), columns.get("psnr", []), strict=False)
    return {key: value for key, value in pairs if value is not None}


def _panels(count: int, legend: bool) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels and, on demand, room for a legend below them."""
    from matplotlib.figure import Figure

    columns = min(count, _PANELS_A_ROW)
    rows = -(-count // columns)
    figure = Figure((max(_PANEL[0] * columns, 5.2), _PANEL[1] * rows + 0.4 * legend), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, list(axes[:count])


def legend(figure: Figure, axes: list[Axes]) -> None:
    """One legend below all panels, each label once."""
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    width = 0.6 + 0.075 * max(len(label) for label in handles)  # inches of an entry, roughly
    columns = max(1, min(len(handles), 4, int(figure.get_figwidth() / width)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def _plain_ticks(axis: Axes, values: list[float]) -> None:
    """Ticks at powers of two, in plain numbers: rates are thought of as 0.25, 0.5, 1, 2."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    axis.set_xlim(min(2.0**low, min(values)) / 1.15, max(2.0**high, max(values)) * 1.15)
    axis.xaxis.set_major_locator(FixedLocator([2.0**power for power in range(low, high + 1)]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
