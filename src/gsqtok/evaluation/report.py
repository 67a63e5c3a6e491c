"""A comparison as one HTML file that needs nothing else: table, plots, and images to page through.

The page is ``report.html`` and ``report.js`` beside this module. Names in a result may come from files that somebody
else made: whatever is put into the page is escaped, and its security policy runs the one script whose hash it names.
Errors are drawn by the browser (the difference of original and reconstruction, each channel by itself).
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import logging
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from gsqtok import __version__
from gsqtok.evaluation.compare import BITS, Comparison, figure_of, shown
from gsqtok.evaluation.plots import DPI, PLOTS, png
from gsqtok.io import atomic_write
from gsqtok.tokens.archive import UNREADABLE

log = logging.getLogger("gsqtok.evaluation")

PAGE = "report.html"
_TEMPLATE = Path(__file__).with_name("report.html")
_SCRIPT = Path(__file__).with_name("report.js")
_MAX_TOKENS = 2**22  # an archive that claims more tokens for one image is none of ours


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
    plots: dict[str, tuple[bytes, bytes]] = {}
    for name, plot in PLOTS.items():
        if light := png(plot, comparison):
            plots[name] = (light, png(plot, comparison, dark=True))
    with atomic_write(folder / PAGE) as aside:
        aside.write_text(page(comparison, plots), "utf-8")
    written = [folder / PAGE]
    for name, (light, _) in plots.items():
        written.append(folder / f"{name}.png")
        with atomic_write(written[-1]) as aside:
            aside.write_bytes(light)
    return written


def page(comparison: Comparison, plots: dict[str, tuple[bytes, bytes]]) -> str:
    """The HTML of a comparison; plots by name, each as PNG for a light and for a dark page."""
    script = _SCRIPT.read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    first = comparison.results[0]
    data, protocol = first.data, first.protocol
    size = f", {protocol['size']} px" if protocol["size"] else ""
    summary = (
        f"{data['images']:,} images of {data['source']}{', ' + data['split'] if data['split'] else ''}; protocol "
        f"{protocol['name']}{size}; {str(first.environment.get('date', ''))[:10]} gsqtok {__version__}"
    )
    warnings = "".join(f"<li>{html.escape(line)}</li>" for line in comparison.warnings)
    parts = {
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "title": html.escape(_title(comparison)),
        "summary": f"<p>{html.escape(summary)}</p>",
        "warnings": f'<ul class="warnings">{warnings}</ul>' if warnings else "",
        "table": _table(comparison),
        "plots": "".join(_plot(name, *images) for name, images in plots.items()),
        "data": _json({"labels": comparison.labels, "images": _images(comparison)}),
        "script": script,
    }
    # one pass, so that nothing that was put in is taken for a place
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _TEMPLATE.read_text("utf-8"))


def _title(comparison: Comparison) -> str:
    first, *others = dict.fromkeys(str(result.model["name"]) for result in comparison.results)
    return f"{first} against {', '.join(others)}" if others else first


def _table(comparison: Comparison) -> str:
    head = "".join(f"<th>{html.escape(t)}</th>" for t in ["model", *(figure_of(n).title for n in comparison.columns())])
    rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in comparison.rows())
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"


def _plot(name: str, light: bytes, dark: bytes) -> str:
    with Image.open(io.BytesIO(light)) as image:
        width = image.width * 100 // DPI  # so that all plots have letters of one size
    light, dark = (_uri(data, "png") for data in (light, dark))
    return (
        f'<image><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img width="{width}" src="{light}" alt="{html.escape(name.replace("_", " "))}"></image>'
    )


def _json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it ends the element or begins a comment."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _images(comparison: Comparison) -> list[dict[str, Any]]:
    """The images that any result kept, best first; results that kept the same image share a page."""
    pages: dict[tuple[str, str], dict[str, Any]] = {}
    order = {"best": 0, "median": 1, "worst": 2}
    kept = [(order[p["rank"]], n, p) for n, result in enumerate(comparison.results) for p in result.images]
    for _, number, entry in sorted(kept, key=lambda item: item[:2]):
        folder, label = comparison.paths[number].parent, comparison.labels[number]
        try:
            original = _read(_inside(folder, entry["original"]))
            reconstruction = _read(_inside(folder, entry["reconstruction"]))
            tokens = _token_maps(_inside(folder, entry["tokens"])) if entry.get("tokens") else []
        except (*UNREADABLE, Image.DecompressionBombError) as error:
            log.warning("left out of the report: '%s' of %s (%s)", entry["key"], label, " ".join(str(error).split()))
            continue
        # the same name under another protocol is another image
        identity = (str(entry["key"]), hashlib.sha256(repr(original.size).encode() + original.tobytes()).hexdigest())
        if identity not in pages:
            pages[identity] = {
                "key": str(entry["key"]),
                "ranks": {},
                "width": original.width,
                "original": _image_uri(original),
                "models": {},
            }
        ranked_by = pages[identity]["ranks"].setdefault(entry["rank"], [])
        if (name := str(entry.get("ranked_by", label))) not in ranked_by:
            ranked_by.append(name)
        pages[identity]["models"][number] = {
            "image": _image_uri(reconstruction),
            "tokens": tokens,
            "figures": _figures_of(comparison, number, entry["key"]),
        }
    return list(pages.values())


def _figures_of(comparison: Comparison, number: int, key: str) -> str:
    """The figures of one image as a line, bits per pixel always among them."""
    result = comparison.results[number]
    columns = result.per_image
    if key not in columns.get("key", []):
        return ""
    row = columns["key"].index(key)
    values = {BITS: result.model[BITS]} | {name: column[row] for name, column in columns.items() if name != "key"}
    known = [name for name in [BITS, *values] if isinstance(values[name], (int, float))]
    return " · ".join(f"{figure_of(name).title} {shown(name, values[name])}" for name in dict.fromkeys(known))


def _inside(folder: Path, name: Any) -> Path:
    """A path that a result names, which must lie below the result's own folder."""
    parts = PurePosixPath(str(name).replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or PureWindowsPath(str(name)).drive:
        raise ValueError(f"refused: '{name}' points outside the result's folder")
    return folder / parts


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _token_maps(path: Path) -> list[str]:
    """One small image a group, (h, w) in colours that only tell tokens apart: near indices are not alike."""
    with np.load(path, allow_pickle=False) as arrays:
        grid = next((a for a in (arrays[n] for n in arrays.files) if a.ndim == 3 and a.dtype.kind in "iu"), None)
    if grid is None or not 0 < grid.size <= _MAX_TOKENS:
        raise ValueError(f"{path} holds no grid (h, w, G) of tokens")
    return [_image_uri(Image.fromarray(token_colours(grid[:, :, group]))) for group in range(grid.shape[2])]


def token_colours(tokens: np.ndarray) -> np.ndarray:
    """A colour for each index: integers (...) -> uint8 (..., 3).

    Additive recurrences with the roots of x^4 = x + 1 spread any number of indices evenly over hue, chroma and
    lightness (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences").
    """
    root = 1.2207440846057596
    hue, chroma, light = (np.modf(0.5 + tokens.astype(np.float64) * root**-power)[0] for power in (1, 2, 3))
    phases = hue[..., None] + np.array([0, 1 / 3, 2 / 3])
    value = 0.3 + 0.45 * light[..., None] + (0.12 + 0.13 * chroma[..., None]) * np.cos(2 * np.pi * phases)
    return (255 * value).round().astype(np.uint8)


def _image_uri(image: Image.Image) -> str:
    """An image without loss, stored anew: nothing but pixels passes from a result's files into the page."""
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True, exact=True, quality=60)
    return _uri(file.getvalue(), "webp")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
