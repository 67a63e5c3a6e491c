"""Plots of a study's table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsqtok.evaluation.plots import COLOURS, DPI, MARKERS, legend, style
from gsqtok.studies.study import Plot
from gsqtok.studies.table import Table, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL = (4.4, 3.6)  # inches


def draw(plot: Plot, table: Table, folder: Path) -> Path | None:
    """Draw a plot into the folder as PNG; None where the table holds nothing for it.

    Raises:
        ImportError: no matplotlib.
    """
    only = dict(plot.only)
    panels = table.values(plot.panels, **only) if plot.panels else [None]
    curves = {panel: curves_of(plot, table, only | ({plot.panels: panel} if plot.panels else {})) for panel in panels}
    curves = {panel: lines for panel, lines in curves.items() if lines}
    if not curves:
        return None
    references = references_of(plot, table, only)
    categories = list(dict.fromkeys(x for lines in curves.values() for p in lines.values() for x, *_ in p))
    named = isinstance(categories[0], str)
    with style():
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter

        figure = Figure((max(5.4, _PANEL[0] * len(curves)), _PANEL[1] + 0.5), layout="constrained")
        axes = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
        labels = list(dict.fromkeys(label for lines in curves.values() for label in lines))
        for axis, (panel, lines) in zip(axes, curves.items(), strict=True):
            for label, points in lines.items():
                number = labels.index(label)
                x, y, spread = zip(*points, strict=True)
                axis.errorbar(
                    [categories.index(value) for value in x] if named else x,
                    y,
                    yerr=[s or 0 for s in spread] if any(spread) else None,
                    color=COLOURS[number % len(COLOURS)],
                    linestyle="-" if number < len(COLOURS) else "--",
                    marker=MARKERS[number % len(MARKERS)],
                    markersize=5,
                    linewidth=1.5,
                    capsize=3,
                    label=label,
                )
            if named:
                axis.set_xticks(range(len(categories)), categories)
            axis.set_xlabel(title_of(plot.x))
            if panel is not None:
                axis.set_title(_label(plot.panels, panel))
            if plot.log_x:
                low, high = (end(x for points in lines.values() for x, *_ in points) for end in (min, max))
                axis.set_xscale("log", base=2)
                axis.xaxis.set_major_locator(LogLocator(2, (1.0,) if high > 8 * low else (1.0, 1.25, 1.5), numticks=7))
                axis.xaxis.set_major_formatter(lambda value, _: _short(value))
                axis.xaxis.set_minor_formatter(NullFormatter())
            for label, y in references.items():
                axis.axhline(y, color="0.4", linestyle=":", label=label)
            if plot.log_y:
                log_y(axis)
        axes[0].set_ylabel(title_of(plot.y))
        if plot.lines:
            legend(figure, list(axes))
        path = folder / f"{plot.file}.png"
        figure.savefig(path, dpi=DPI)
    return path


def log_y(axis: Axes) -> None:
    """A logarithmic axis with a few plain numbers on it, however short it is."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    decades = LogLocator(10, (1, 2, 5) if high < 100 * low else (1,))
    axis.yaxis.set_major_locator(MaxNLocator(6) if high < 10 * low else decades)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def curves_of(plot: Plot, table: Table, only: dict[str, Any]) -> dict[str, list[tuple[Any, float, float | None]]]:
    """Points (x, mean, spread) of each line."""
    lines: dict[str, list[tuple[Any, float, float | None]]] = {}
    for label, setting in _labelled(plot, table, only):
        x, y = _place(plot, table, setting), table.value(plot.y, **setting)
        if x is not None and y is not None:
            lines.setdefault(label, []).append((x, y.mean, y.spread))
    return {label: points if isinstance(points[0][0], str) else sorted(points) for label, points in lines.items()}


def references_of(plot: Plot, table: Table, only: dict[str, Any]) -> dict[str, float]:
    """What has no place on the x axis, as a level to compare with: no quantization, no discriminator."""
    levels = {}
    for label, setting in _labelled(plot, table, only):
        y = table.value(plot.y, **setting)
        if y is not None and _place(plot, table, setting) is None:
            levels["no quantization" if _without_tokens(table, setting) else label] = y.mean
    return levels


def _labelled(plot: Plot, table: Table, only: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The settings with these values, each with the name of its line."""
    settings = [setting for setting in table.settings() if only.items() <= setting.items()]
    named = [[_label(column, s[column]) for column in plot.lines if s.get(column, "") != ""] for s in settings]
    return [(", ".join(names), setting) for names, setting in zip(named, settings, strict=True)]


def _place(plot: Plot, table: Table, setting: dict[str, Any]) -> Any:
    """Where a setting stands on the x axis: what it varies, or the mean of what was measured; None for nowhere."""
    if _without_tokens(table, setting):
        return None
    x = setting.get(plot.x)
    if x is None and (measured := table.value(plot.x, **setting)) is not None:
        return measured.mean
    return None if x == "" or (plot.log_x and isinstance(x, str)) else x


def _without_tokens(table: Table, setting: dict[str, Any]) -> bool:
    """Whether images were measured, but no codebook: bits and codewords of it mean nothing."""
    return table.value("psnr", **setting) is not None and table.value("usage", **setting) is None


def _short(value: float) -> str:
    """A tick of an axis in powers of two: 0.0156, 512, 64k, 1M."""
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def _label(column: str, value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{column} = {value:,}"
