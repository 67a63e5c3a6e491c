"""Plots of a study's table, and what its runs looked like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gsqtok.evaluation.report.metrics import metric_of
from gsqtok.evaluation.report.plots import COLOURS, legend, line, logarithmic_y, panels, powers_of_two
from gsqtok.studies.study import Plot
from gsqtok.studies.table import Row, Table, described
from gsqtok.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _CURVES = 8.0, 3.0  # inches: of all examples, and the height of their curves
CURVES = {"loss/reconstruction": "reconstruction loss (training)", "codebook/perplexity": "perplexity (training)"}


def draw(plot: Plot, table: Table) -> Figure | None:
    """Draw a plot; None where the table holds nothing for it."""
    points = points_of(plot, table)
    placed = points.dropna(subset=["x"])
    if placed.empty:
        return None
    categories = list(dict.fromkeys(placed["x"])) if isinstance(placed["x"].iloc[0], str) else []
    lines = list(dict.fromkeys(placed["line"]))
    shown = list(dict.fromkeys(placed["panel"]))
    figure, axes = panels(len(shown), in_a_row=len(shown), share_y=True)
    for axis, panel in zip(axes, shown, strict=True):
        here = placed[placed["panel"] == panel]
        for label in dict.fromkeys(here["line"]):
            curve = here[here["line"] == label]
            curve = curve if categories else curve.sort_values("x")
            spread = curve["spread"].fillna(0) if placed["spread"].any() else None
            x = [categories.index(value) for value in curve["x"]] if categories else curve["x"]
            line(axis, lines.index(label), label, x, curve["mean"], spread)
        if categories:
            axis.set_xticks(range(len(categories)), categories)
        axis.set_xlabel(metric_of(plot.x).title)
        axis.set_title(panel)
        if plot.log_x:
            powers_of_two(axis, list(here["x"]))
        for label, level in points[points["x"].isna()].groupby("line")["mean"].last().items():
            axis.axhline(level, color="0.4", linestyle=":", label=label)
        if plot.log_y:
            logarithmic_y(axis)
    axes[0].set_ylabel(metric_of(plot.y).title)
    if plot.lines:
        legend(figure, axes)
    return figure


def points_of(plot: Plot, table: Table) -> pd.DataFrame:
    """Gather what a plot shows: panel, line, x, mean and spread of each setting that has it.

    A setting without a place on the x axis (no quantization, no discriminator) has None for x: it is a level to compare
    with.
    """
    found = []
    statistics = table.statistics()
    for place, setting in enumerate(table.settings()):
        numbers = statistics.loc[place]
        if any(setting.get(column, value) != value for column, value in plot.only):
            continue
        names = [_label(column, setting[column]) for column in plot.lines if setting.get(column, "") != ""]
        # where images were measured, but no codebook, its bits and codewords mean nothing
        without_tokens = pd.notna(numbers.get(("psnr", "mean"))) and pd.isna(numbers.get(("usage", "mean")))
        without_tokens = without_tokens and "codec" not in setting
        for label, ending in ((label, ending) for label, endings in plot.series for ending in endings):
            if pd.isna(numbers.get((plot.y + ending, "mean"))):
                continue
            measured = None if without_tokens else numbers.get((plot.x + ending, "mean"))
            x = setting.get(plot.x, measured)
            if not without_tokens and pd.isna(x):
                continue  # not measured, such as what tokens cost
            if x == "" or (plot.log_x and isinstance(x, str)):
                x = None
            found.append(
                {
                    "panel": _label(plot.panels, setting[plot.panels]) if plot.panels else "",
                    "line": "no quantization" if without_tokens else ", ".join([*names, label] if label else names),
                    "x": x,
                    "mean": numbers[plot.y + ending, "mean"],
                    "spread": numbers[plot.y + ending, "std"],
                }
            )
    return pd.DataFrame(found, columns=["panel", "line", "x", "mean", "spread"]).astype({"x": object})


def draw_examples(table: Table, runs: Path) -> Figure | None:
    """Draw images of the best and the worst run beside their curves; None where no run has left images.

    Args:
        table: the study's results.
        runs: the folder of all runs; that of a run ends in its digest.
    """
    chosen = choose(table, runs)
    if not chosen:
        return None
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    images = [imread(run / "images.png") for _, run in chosen]
    heights = [_WIDTH * image.shape[0] / image.shape[1] + 0.4 for image in images]
    trainings = [RunFolder(run / "training") for _, run in chosen]
    logs = [training.metrics() if training.metrics_file.exists() else [] for training in trainings]
    places: list[Any] = [[number, number] for number in range(len(chosen))] + [list(CURVES)] * any(logs)
    figure = Figure((_WIDTH, sum(heights) + _CURVES * any(logs)), layout="constrained")
    axes: dict[Any, Axes] = figure.subplot_mosaic(places, height_ratios=heights + [_CURVES] * any(logs))
    for name, title in CURVES.items() if any(logs) else ():
        for number, log in enumerate(logs):
            points = pd.DataFrame(log, columns=["step", name]).dropna()
            if len(points):
                line(axes[name], number, "", points["step"], points[name])
        axes[name].set(xlabel="step", title=title)
        logarithmic_y(axes[name])
    for number, (image, (row, _)) in enumerate(zip(images, chosen, strict=True)):
        axes[number].imshow(image)
        axes[number].set_axis_off()
        usage = row.metrics.get("usage")
        caption = f"{described(row.varied)}: {row.metrics['psnr']:.2f} dB"
        caption += "" if usage is None else f", usage {usage:.2%}"
        axes[number].set_title(caption, fontsize="medium", color=COLOURS[number])
    return figure


def choose(table: Table, runs: Path) -> list[tuple[Row, Path]]:
    """Choose of the runs with images the best and the worst by PSNR, and the one that uses the fewest codewords."""
    measured = [row for row in table.rows if "psnr" in row.metrics]
    shown = [(row, images.parent) for row in measured for images in sorted(runs.glob(f"*-{row.digest}/images.png"))[:1]]
    if not shown:
        return []
    shown = [pair for pair in shown if pair[0].metrics.get("usage") is not None] or shown
    by_psnr = sorted(shown, key=lambda pair: pair[0].metrics["psnr"], reverse=True)
    fewest = min(shown, key=lambda pair: pair[0].metrics.get("usage", 1.0))
    return list({row.digest: (row, run) for row, run in (by_psnr[0], by_psnr[-1], fewest)}.values())


def _label(column: str, value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{column} = {value:,}"
