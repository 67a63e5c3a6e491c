"""A comparison as HTML files that need nothing else, and a leaderboard of many results.

The page is ``page.html`` and ``page.js`` beside this module. Names in a result may come from files that somebody else
made: whatever is put into the page is escaped, and its security policy runs the one script whose hash it names.
Errors are drawn by the browser (the difference of original and reconstruction, each channel by itself).
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from gsqtok import __version__
from gsqtok.evaluation.report.comparison import PLOTS, Comparison, rate_distortion
from gsqtok.evaluation.report.images import image_pages, uri
from gsqtok.evaluation.report.metrics import base_of
from gsqtok.evaluation.report.plots import DPI, png, style
from gsqtok.evaluation.report.tables import as_text, escaped, html_table, markdown_table
from gsqtok.evaluation.result import Result
from gsqtok.io import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEADERBOARD = (
    *("bits_per_pixel", "psnr", "ssim", "ms_ssim", "lpips", "rfid", "frechet_distance"),
    *("pfid", "perturbed_frechet_distance", "t_acc", "t_ned", "f_sim", "usage", "parameters"),
    *("encode_images_per_second", "decode_images_per_second"),
)
"""The columns of a leaderboard, by the beginning of their names; those of other protocols where they were measured."""
_MEASURED = ("frechet_distance", "pfid", "perturbed_frechet_distance", "t_acc", "t_ned", "f_sim")
_ALWAYS = set(LEADERBOARD) - set(_MEASURED)  # a Fréchet distance stands in for rFID where its weights are not

Plots = Mapping[str, Callable[[Comparison], "Figure | None"]]


def write_report(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write report.html and its plots as PNG files.

    Args:
        comparison: what to show. Images that cannot be read are left out with a warning.
        folder: made if absent; files of these names are replaced.

    Returns:
        The files written, the page first.

    Raises:
        ImportError: no matplotlib.
    """
    folder = Path(folder)
    drawn = _drawn(comparison, PLOTS)
    first, *others = dict.fromkeys(str(result.model["name"]) for result in comparison.results)
    title = f"{first} against {', '.join(others)}" if others else first
    data = comparison.results[0].data
    split = f", {data['split']}" if data["split"] else ""
    summary = f"{data['source']}{split}; protocol {_protocol(comparison.results[0])}"
    text = _page(title, summary, as_text(comparison.metrics()), comparison, drawn, image_pages(comparison))
    files = {"report.html": text.encode()} | {f"{name}.png": light for name, (light, _) in drawn.items()}
    return _written(folder, files)


def write_leaderboard(results: Sequence[str | Path], folder: str | Path) -> list[Path]:
    """Write a table of many results, sorted by bits per pixel: Markdown, CSV and one HTML page with a plot.

    The columns are bits per pixel, PSNR, SSIM, MS-SSIM, LPIPS, rFID (and other Fréchet distances), codebook usage,
    parameters, encoded and decoded images per second, and the protocol. A dash says that a result has no such metric.
    Results that were not measured as the first one have a mark and a warning that says what differs. The plot has
    quality over bits per pixel; results of codecs are grey yardsticks in it.

    Args:
        results: files that ``gsqtok evaluate -o`` wrote, of tokenizers and of codecs.
        folder: made if absent; leaderboard.md, leaderboard.csv, leaderboard.html and rate_distortion.png are replaced.

    Returns:
        The files written.

    Raises:
        ValueError: no file, one named twice, or (`ResultError`) one that is no result of an evaluation.
        FileNotFoundError: no such file.
        ImportError: no matplotlib.
    """
    comparison = Comparison.load(results)
    metrics = leaderboard(comparison)
    protocols = dict(zip(comparison.labels, map(_protocol, comparison.results), strict=True))
    table = as_text(metrics).assign(protocol=[protocols[label] for label in metrics.index])
    table["model"] = [comparison.marked(label, label) for label in metrics.index]
    drawn = _drawn(comparison, {"rate_distortion": lambda c: rate_distortion(c, metrics)})
    warnings = [f"- {escaped(line)}" for line in comparison.warnings]
    if warnings:
        warnings.insert(0, f"\\* not measured as {escaped(comparison.labels[0])} was:\n")
    files = {
        "leaderboard.html": _page("Leaderboard", f"{len(table)} results", table, comparison, drawn, []).encode(),
        "leaderboard.md": "\n".join([markdown_table(table), "", *warnings]).rstrip().encode() + b"\n",
        "leaderboard.csv": metrics.assign(protocol=table["protocol"].array).to_csv().encode(),
        **{f"{name}.png": light for name, (light, _) in drawn.items()},
    }
    return _written(Path(folder), files)


def leaderboard(comparison: Comparison) -> pd.DataFrame:
    """Make a leaderboard's table of numbers: a row for each label, sorted by bits per pixel, then by PSNR."""
    present = {name: base_of(name) for name in comparison.metrics().columns}
    columns = [
        name
        for base in LEADERBOARD
        for name in sorted(n for n in present if present[n] == base) or ([base] if base in _ALWAYS else [])
    ]
    return comparison.table(columns).sort_values(["bits_per_pixel", "psnr"], ascending=[True, False])


def _protocol(result: Result) -> str:
    size = f" {result.protocol['size']} px" if result.protocol["size"] else ""
    return f"{result.protocol['name']}{size}, {result.data['images']:,} images"


def _written(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    for name, content in files.items():
        with atomic_write(folder / name) as aside:
            aside.write_bytes(content)
    return [folder / name for name in files]


def _drawn(comparison: Comparison, plots: Plots) -> dict[str, tuple[bytes, bytes]]:
    """Each plot for which the results hold something, as PNG for a light and for a dark page."""
    drawn: dict[str, tuple[bytes, ...]] = {}
    for dark in (False, True):
        with style(dark):
            for name, plot in plots.items():
                if (figure := plot(comparison)) is not None:
                    drawn[name] = (*drawn.get(name, ()), png(figure))
    return {name: (light, dark) for name, (light, dark) in drawn.items()}


def _page(
    title: str,
    summary: str,
    table: pd.DataFrame,
    comparison: Comparison,
    drawn: Mapping[str, tuple[bytes, bytes]],
    images: list[dict[str, Any]],
) -> str:
    script = Path(__file__).with_name("page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    date = str(comparison.results[0].environment.get("date", ""))[:10]
    warnings = "".join(f"<li>{html.escape(line)}</li>" for line in comparison.warnings)
    data = json.dumps({"labels": comparison.labels, "images": images})
    parts = {
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "title": html.escape(title),
        "summary": html.escape(f"{summary}; {date} gsqtok {__version__}"),
        "warnings": f'<ul class="warnings">{warnings}</ul>' if warnings else "",
        "table": html_table(table),
        "plots": "".join(_plot(name, light, dark) for name, (light, dark) in drawn.items()),
        "data": re.sub("[<>&]", lambda sign: f"\\u{ord(sign[0]):04x}", data),  # nothing ends the script element
        "script": script,
    }
    # one pass, so that nothing that was put in is taken for a place
    template = Path(__file__).with_name("page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def _plot(name: str, light: bytes, dark: bytes) -> str:
    with Image.open(io.BytesIO(light)) as image:
        width = image.width * 100 // DPI  # so that all plots have letters of one size
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{uri(dark, "png")}">'
        f'<img width="{width}" src="{uri(light, "png")}" alt="{html.escape(name.replace("_", " "))}"></picture>'
    )
