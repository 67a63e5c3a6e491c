"""What all plots share: style, panels, lines with markers, a legend, and axes with plain numbers on them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; grey for their black, unseen in the dark.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c8c8c")
MARKERS = "osD^vP*X"
DPI = 130
PANEL = (4.4, 3.6)  # inches
_MOST_TICKS = 7


@contextmanager
def style(dark: bool = False) -> Iterator[None]:
    """Set matplotlib up for these plots, on white or for a dark page."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'gsqtok[plots]'") from error
    ink, paper, faint = ("#d7dade", "#191c20", "#41464d") if dark else ("#22262b", "#ffffff", "#d9dce0")
    settings: dict[Any, Any] = {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper),
        **dict.fromkeys(("axes.labelcolor", "axes.titlecolor", "text.color", "xtick.color", "ytick.color"), ink),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), faint),
        **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
        "grid.linewidth": 0.6,
        "font.size": 10,
        "axes.titlesize": 11,
        "text.parse_math": False,  # a model may be called "$x"
    }
    with matplotlib.rc_context(settings):
        yield


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def panels(count: int, *, in_a_row: int = 3, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """Make a figure with so many panels, and room for a legend below them."""
    from matplotlib.figure import Figure

    columns = min(count, in_a_row)
    rows = -(-count // columns)
    figure = Figure((max(PANEL[0] * columns, 5.4), PANEL[1] * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y).flatten()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, list(axes[:count])


def line(
    axis: Axes,
    number: int,
    label: str,
    x: Sequence[float],
    y: Sequence[float],
    spread: Sequence[float] | None = None,
    *,
    yardstick: bool = False,
) -> None:
    """Draw a line through points.

    Args:
        axis: where.
        number: of the line, which chooses its colour and marker.
        label: for the legend.
        x: of the points.
        y: of the points.
        spread: half the length of each point's error bar.
        yardstick: grey and dotted, for what the other lines are held against.
    """
    looks: dict[str, Any] = {
        "color": COLOURS[-1] if yardstick else COLOURS[number % len(COLOURS)],
        "linestyle": ":" if yardstick else "-" if number < len(COLOURS) else "--",
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 9 if len(x) == 1 else 5,
        "linewidth": 1.5,
        "label": label,
    }
    if spread is None:
        axis.plot(x, y, **looks)
    else:
        axis.errorbar(x, y, yerr=spread, capsize=3, **looks)


def legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """Add one legend below all panels, each label once."""
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    width = 0.6 + 0.075 * max(map(len, handles), default=0)  # inches of an entry, roughly
    columns = max(1, min(len(handles), 4, int(figure.get_figwidth() / width)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def powers_of_two(axis: Axes, values: Sequence[float]) -> None:
    """Make the x axis logarithmic with ticks at powers of two: rates are thought of as 0.25, 0.5, 1, codebooks as 64k.

    The axis reaches as far as the values; further, to the next powers, where fewer than two of them lie between.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = math.log2(min(values)), math.log2(max(values))
    first, last = math.ceil(low), math.floor(high)
    if last <= first:
        first, last = math.floor(low), math.ceil(high)
    margin = 0.04 * max(high - low, 1)
    axis.set_xscale("log", base=2)
    axis.set_xlim(2 ** (min(low, first) - margin), 2 ** (max(high, last) + margin))
    step = (last - first) // _MOST_TICKS + 1
    axis.xaxis.set_major_locator(FixedLocator([2.0**power for power in range(first, last + 1, step)]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def logarithmic_y(axis: Axes) -> None:
    """Make the y axis logarithmic with a few plain numbers on it, however short it is; not where a value is below 0.

    A loss may be a logarithm itself.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if any((np.asarray(drawn.get_ydata(), float) < 0).any() for drawn in axis.get_lines()):
        return
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    decades = LogLocator(10, (1, 2, 5) if high < 100 * low else (1,))
    axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]) if high < 10 * low else decades)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    """Write a power of two: 1/64, 0.125, 512, 64k, 1M."""
    if value < 0.0625:
        return f"1/{1 / value:g}"
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
