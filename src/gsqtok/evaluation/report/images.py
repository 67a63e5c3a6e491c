"""The images that results kept, ready for a page: each original once, with what every model made of it."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from gsqtok.evaluation.report.comparison import Comparison
from gsqtok.evaluation.report.metrics import metric_of, text_of
from gsqtok.io import one_line

log = logging.getLogger("gsqtok.evaluation")

_RANKS = ("best", "median", "worst")
_MAX_TOKENS = 2**22  # an archive that claims more tokens for one image is none of ours


def image_pages(comparison: Comparison) -> list[dict[str, Any]]:
    """Gather the images that any result kept, best first, as plain values for the page's script.

    Results that kept the same image share a page. Images that cannot be read, or that lie outside the result's folder,
    are left out with a warning.
    """
    pages: dict[tuple[str, str], dict[str, Any]] = {}
    kept = [(entry, number) for number, result in enumerate(comparison.results) for entry in result.images]
    for entry, number in sorted(kept, key=lambda pair: _RANKS.index(pair[0]["rank"])):
        folder, label = comparison.paths[number].parent, comparison.labels[number]
        try:
            original, reconstruction = (_read(_inside(folder, entry[name])) for name in ("original", "reconstruction"))
            tokens = _token_maps(_inside(folder, entry["tokens"])) if entry.get("tokens") else []
        except Exception as error:  # Pillow and numpy raise many kinds for files that are damaged
            log.warning("left out of the report: %r of %s (%s)", entry["key"], label, one_line(error))
            continue
        # the same name under another protocol is another image
        digest = hashlib.sha256(repr(original.size).encode() + original.tobytes()).hexdigest()
        new = {
            "key": entry["key"],
            "ranks": {},
            "width": original.width,
            "original": _image_uri(original),
            "models": {},
        }
        page = pages.setdefault((entry["key"], digest), new)
        ranked_by = page["ranks"].setdefault(entry["rank"], [])
        if (name := str(entry.get("ranked_by", label))) not in ranked_by:
            ranked_by.append(name)
        page["models"][number] = {
            "image": _image_uri(reconstruction),
            "tokens": tokens,
            "metrics": _metrics_of(comparison, number, entry["key"]),
        }
    return list(pages.values())


def token_colours(tokens: np.ndarray) -> np.ndarray:
    """Choose a colour for each index: integers (...) -> uint8 (..., 3).

    Additive recurrences with the roots of x^4 = x + 1 spread any number of indices evenly over hue, chroma and
    lightness (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences").
    """
    root = 1.2207440846057596
    hue, chroma, light = (np.modf(0.5 + tokens.astype(np.float64) * root**-power)[0] for power in (1, 2, 3))
    phases = hue[..., None] + np.array([0, 1 / 3, 2 / 3])
    value = 0.3 + 0.45 * light[..., None] + (0.12 + 0.13 * chroma[..., None]) * np.cos(2 * np.pi * phases)
    return (255 * value).round().astype(np.uint8)


def uri(data: bytes, kind: str) -> str:
    """Put an image file into an address, so that a page needs no other file."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _metrics_of(comparison: Comparison, number: int, key: str) -> str:
    """The metrics of one image as a line, bits per pixel always among them."""
    result = comparison.results[number]
    columns = result.per_image
    if key not in columns.get("key", []):
        return ""
    row = columns["key"].index(key)
    values = {"bits_per_pixel": result.model["bits_per_pixel"]}
    values |= {name: column[row] for name, column in columns.items() if name != "key"}
    known = {name: value for name, value in values.items() if value is not None}
    return " · ".join(f"{metric_of(name).title} {text_of(name, value)}" for name, value in known.items())


def _inside(folder: Path, name: str) -> Path:
    """A path that a result names, which must lie below the result's own folder."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or PureWindowsPath(name).drive:
        raise ValueError(f"refused: '{name}' points outside the result's folder")
    return folder / parts


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _token_maps(path: Path) -> list[str]:
    """One map for each group, (h, w). Colours only tell tokens apart: similar ones do not mean similar codewords."""
    with np.load(path, allow_pickle=False) as arrays:
        grid = next((a for a in (arrays[n] for n in arrays.files) if a.ndim == 3 and a.dtype.kind in "iu"), None)
    if grid is None or not 0 < grid.size <= _MAX_TOKENS:
        raise ValueError(f"{path} holds no grid (h, w, G) of tokens")
    return [_image_uri(Image.fromarray(token_colours(grid[:, :, group]))) for group in range(grid.shape[2])]


def _image_uri(image: Image.Image) -> str:
    """An image without loss, stored anew: nothing but pixels passes from a result's files into the page."""
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True, exact=True, quality=60)
    return uri(file.getvalue(), "webp")
