"""Plots of a study's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gsqtok.evaluation.plots import COLOURS, DPI, MARKERS, legend, style
from gsqtok.studies.study import Plot
from gsqtok.studies.table import Table, title_of

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
    ceiling = ceiling_of(plot, table, only)
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
                    range(len(x)) if isinstance(x[0], str) else x,
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
                if isinstance(x[0], str):
                    axis.set_xticks(range(len(x)), x)
            axis.set_xlabel(title_of(plot.x))
            if panel is not None:
                axis.set_title(_label(plot.panels, panel))
            if plot.log_x:
                low, high = (end(x for points in lines.values() for x, *_ in points) for end in (min, max))
                axis.set_xscale("log", base=2)
                axis.xaxis.set_major_locator(LogLocator(2, (1.0,) if high > 8 * low else (1.0, 1.25, 1.5), numticks=7))
                axis.xaxis.set_major_formatter(lambda value, _: _short(value))
                axis.xaxis.set_minor_formatter(NullFormatter())
            if ceiling is not None:
                axis.axhline(ceiling, color="0.4", linestyle=":", label="no quantization")
            if plot.log_y:
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.yaxis.set_minor_formatter(NullFormatter())
        axes[0].set_ylabel(title_of(plot.y))
        if plot.lines:
            legend(figure, list(axes))
        path = folder / f"{plot.file}.png"
        figure.savefig(path, dpi=DPI)
    return path


def curves_of(plot: Plot, table: Table, only: dict[str, Any]) -> dict[str, list[tuple[Any, float, float | None]]]:
    """Points (x, mean, spread) of each line."""
    lines: dict[str, list[tuple[Any, float, float | None]]] = {}
    for setting in _settings(table, only, tokens=True):
        x, y = _place(plot, table, setting), table.value(plot.y, **setting)
        if x is None or y is None or (plot.log_x and isinstance(x, str)):
            continue
        label = ", ".join(_label(column, setting[column]) for column in plot.lines if column in setting)
        lines.setdefault(label, []).append((x, y.mean, y.spread))
    return {label: points if isinstance(points[0][0], str) else sorted(points) for label, points in lines.items()}


def _place(plot: Plot, table: Table, setting: dict[str, Any]) -> Any:
    """Where a setting stands on the x axis: what it varies, or the mean of what was measured; None for nowhere."""
    x = setting.get(plot.x)
    if x is None and (measured := table.value(plot.x, **setting)) is not None:
        return measured.mean
    return x


def ceiling_of(plot: Plot, table: Table, only: dict[str, Any]) -> float | None:
    """Of the run without a quantizer, which has no place on an axis of bits or of codewords."""
    for setting in _settings(table, only, tokens=False):
        if (y := table.value(plot.y, **setting)) is not None:
            return y.mean
    return None


def _settings(table: Table, only: dict[str, Any], *, tokens: bool) -> list[dict[str, Any]]:
    """Settings of these values with tokens, or those of pictures that were measured without any."""
    return [
        setting
        for setting in table.settings()
        if only.items() <= setting.items()
        and tokens == (table.value("psnr", **setting) is None or table.value("usage", **setting) is not None)
    ]


def _short(value: float) -> str:
    """A tick of an axis in powers of two: 0.0156, 512, 64k, 1M."""
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def _label(column: str, value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{column} = {value:,}"
