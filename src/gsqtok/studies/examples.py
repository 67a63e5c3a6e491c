"""What a study's runs looked like: images of the best and the worst beside their curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsqtok.evaluation.plots import COLOURS, DPI, style
from gsqtok.studies.plots import log_y
from gsqtok.studies.table import Row, Table, described
from gsqtok.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

WIDTH, CURVE = 8.0, 3.0  # inches: of all, and the height of the curves
CURVES = {"loss/reconstruction": "reconstruction loss (training)", "codebook/perplexity": "perplexity (training)"}


def draw_examples(table: Table, runs: Path, folder: Path) -> Path | None:
    """Draw ``examples.jpg`` into the folder; None where no run has left images.

    Args:
        table: the study's results.
        runs: the folder of all runs; that of a run ends in its digest.
        folder: where to.

    Raises:
        ImportError: no matplotlib.
    """
    chosen = choose(table, runs)
    if not chosen:
        return None
    with style():
        from matplotlib.figure import Figure
        from matplotlib.image import imread

        images = [imread(run / "images.png") for _, run in chosen]
        heights = [WIDTH * image.shape[0] / image.shape[1] + 0.4 for image in images]
        trainings = [RunFolder(run / "training") for _, run in chosen]
        logs = [training.metrics() if training.metrics_file.exists() else [] for training in trainings]
        above = figure = Figure((WIDTH, sum(heights) + CURVE * any(logs)), layout="constrained")
        if any(logs):
            above, below = figure.subfigures(2, 1, height_ratios=[sum(heights), CURVE])
            _draw_curves(below, logs)
        axes = above.subplots(len(chosen), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, image, (row, _), colour in zip(axes, images, chosen, COLOURS, strict=False):
            axis.imshow(image)
            axis.set_axis_off()
            axis.set_title(_caption(row), fontsize="medium", color=colour)
        path = folder / "examples.jpg"
        figure.savefig(path, dpi=DPI, pil_kwargs={"quality": 90})
    return path


def _draw_curves(figure: SubFigure, logs: list[list[dict[str, Any]]]) -> None:
    for axis, (name, title) in zip(figure.subplots(1, 2), CURVES.items(), strict=True):
        for log, colour in zip(logs, COLOURS, strict=False):
            points = [(line["step"], line[name]) for line in log if line.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker=".")
        axis.set(xlabel="step", title=title)
        log_y(axis)


def choose(table: Table, runs: Path) -> list[tuple[Row, Path]]:
    """Of the runs with images the best and the worst by PSNR, and the one that uses the fewest codewords."""
    shown = [(row, run) for row in table.rows if "psnr" in row.figures and (run := _folder(row, runs)) is not None]
    if not shown:
        return []
    shown = [pair for pair in shown if pair[0].figures.get("usage") is not None] or shown
    by_psnr = sorted(shown, key=lambda pair: pair[0].figures["psnr"], reverse=True)
    fewest = min(shown, key=lambda pair: pair[0].figures.get("usage", 1.0))
    return list({row.digest: (row, run) for row, run in (by_psnr[0], by_psnr[-1], fewest)}.values())


def _folder(row: Row, runs: Path) -> Path | None:
    return next((path.parent for path in runs.glob(f"*-{row.digest}/images.png")), None)


def _caption(row: Row) -> str:
    usage = row.figures.get("usage")
    return f"{described(row.varied)}: {row.figures['psnr']:.2f} dB" + ("" if usage is None else f", usage {usage:.2%}")
