"""What was measured and how: one JSON file that a report, a table or another run can trust.

A file holds a JSON object:

- ``format``: ``"gsqtok-evaluation-1"``;
- ``model``: name, fingerprint (SHA-256, or null for a codec), quantizer, factor, bits_per_position, bits_per_pixel
  (nominal), precision ("float32", ...), tile (null: whole images), parameters; what does not apply is null;
- ``data``: source, split, images (measured), skipped (unreadable), fingerprint (see `gsqtok.evaluation.fingerprint`);
- ``protocol``: name, size, crop, resize_filter, antialias, rounding ("8 bits"), features (null, or network,
  weights_sha256, input_size, resize), reference (what the Fréchet distance compares with: "originals", or the data
  fingerprint and count of a saved reference set);
- ``figures``: numbers by name. Null where a figure is not defined (the SSIM of images under 11 pixels);
- ``per_image``: ``key`` and the figures of each image, lists of equal length, in the data set's order;
- ``codebook``: counts_sorted (at most 1024 points of the sorted counts, the largest first), codebook_size, groups,
  positions and more; or null;
- ``images``: a few originals with reconstructions and tokens, as paths relative to the file: key, rank ("best",
  "median" or "worst" by PSNR), original, reconstruction, tokens;
- ``environment``: versions, device, date, command, seconds.

Results come from ``gsqtok.evaluation.evaluate``: `evaluate(tokenizer, dataset, ...)`, and for anything else that turns
images into images, such as an image codec,
``measure(reconstruct, dataset, *, model, protocol="native", codebook=None, ...) -> Result``, where
``reconstruct(images) -> Reconstruction(images, tokens=None, bits=None)`` takes and gives (B, 3, H, W) in [-1, 1] and
``bits`` is (B,), what each image costs; ``model`` is the part described above.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gsqtok.io import atomic_write, json_values

FORMAT = "gsqtok-evaluation-1"

_REQUIRED = {
    "model": ("name", "fingerprint", "quantizer", "factor", "bits_per_position", "bits_per_pixel", "precision"),
    "data": ("source", "split", "images", "skipped", "fingerprint"),
    "protocol": ("name", "size", "crop", "resize_filter", "antialias", "rounding", "features", "reference"),
}
_PREPARATION = ("size", "crop", "resize_filter", "antialias")
_RANKS = ("best", "median", "worst")


class ResultError(ValueError):
    """A file that is no result of an evaluation; the message says which file, and what is wrong with it."""


@dataclass(eq=False)
class Result(Mapping):
    """One evaluation. As a mapping it is its figures: ``result["psnr"]``, ``"rfid" in result``, ``dict(result)``.

    The attributes are the parts listed at the top of this module.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    protocol: dict[str, Any]
    figures: dict[str, float]
    per_image: dict[str, list[Any]] = field(default_factory=dict)
    codebook: dict[str, Any] | None = None
    images: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    def to_dict(self) -> dict[str, Any]:
        """What `save` writes: plain values, None for numbers that are not finite."""
        return {"format": FORMAT, **json_values(asdict(self))}

    def save(self, path: str | Path) -> None:
        """Write the JSON file, whole or not at all."""
        with atomic_write(path) as aside:
            aside.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ResultError: no JSON, another format, or parts that are missing or of the wrong kind.
        """
        try:
            values = json.loads(Path(path).read_text("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ResultError(f"{path} is not a JSON file: {error}") from error
        try:
            return cls.from_dict(values)
        except ResultError as error:
            raise ResultError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, values: Any) -> Result:
        """From parsed JSON, checked; raises ResultError."""
        if not isinstance(values, dict) or "format" not in values:
            raise ResultError("not the result of an evaluation: write one with `gsqtok evaluate ... -o FILE`")
        if values["format"] != FORMAT:
            raise ResultError(f"format {values['format']!r} is not {FORMAT!r}: measure again with this version")
        parts = {name: value for name, value in values.items() if name != "format"}
        if unknown := sorted(set(parts) - set(cls.__dataclass_fields__)):
            raise ResultError(f"unknown part {unknown[0]!r}")
        for part, names in _REQUIRED.items():
            section = _expect(parts, part, dict)
            if missing := [name for name in names if name not in section]:
                raise ResultError(f"{part!r} lacks {missing[0]!r}")
        for name, value in _expect(parts, "figures", dict).items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ResultError(f"figure {name!r} is not a number but {value!r}")
        columns = _expect(parts, "per_image", dict, default={})
        lengths = {name: len(column) if isinstance(column, list) else -1 for name, column in columns.items()}
        if columns and ("key" not in columns or len(set(lengths.values())) > 1 or -1 in lengths.values()):
            raise ResultError(f"'per_image' must hold 'key' and lists of one length, got {lengths}")
        if parts.get("codebook") is not None:
            codebook = _expect(parts, "codebook", dict)
            if missing := [n for n in ("counts_sorted", "codebook_size", "groups", "positions") if n not in codebook]:
                raise ResultError(f"'codebook' lacks {missing[0]!r}")
        for image in _expect(parts, "images", list, default=[]):
            if not isinstance(image, dict) or "key" not in image or image.get("rank") not in _RANKS:
                raise ResultError(f"'images' must name 'key' and 'rank' ({', '.join(_RANKS)}), got {image!r}")
        _expect(parts, "environment", dict, default={})
        return cls(**parts)


def differences(a: Result, b: Result) -> list[str]:
    """Why the figures of two results must not be compared, one line each; empty where they may be.

    Model, device and speed may differ: that is what one compares. Data and protocol may not.
    """
    lines = differences_of(a.protocol, b.protocol)
    # a data set's fingerprint is of its prepared images: under another preparation it says nothing
    prepared_alike = all(a.protocol.get(name) == b.protocol.get(name) for name in _PREPARATION)
    same = ("fingerprint",) if prepared_alike else ("source", "split", "images")
    if any(a.data.get(name) != b.data.get(name) for name in same):
        lines.append(f"images: {_shown_data(a.data)} against {_shown_data(b.data)}")
    return lines


def differences_of(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What two protocols do not share, one line each."""
    return [line for name in {**a, **b} for line in _unlike(name, a.get(name), b.get(name))]


def _unlike(name: str, ours: Any, theirs: Any) -> list[str]:
    if ours == theirs:
        return []
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [line for key in {**ours, **theirs} for line in _unlike(f"{name} {key}", ours.get(key), theirs.get(key))]
    return [f"{name.replace('_', ' ')}: {_shown(ours)} against {_shown(theirs)}"]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("network", "others"))
    return "none" if value is None else str(value)


def _shown_data(data: dict[str, Any]) -> str:
    split = f" {data['split']}" if data["split"] else ""
    return f"{data['images']} of {data['source']}{split} (fingerprint {str(data['fingerprint'])[:12]})"


def _expect(parts: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = parts.get(name, default)
    if not isinstance(value, kind):
        noun = {dict: "an object", list: "a list"}[kind]
        raise ResultError(f"lacks {name!r}" if value is None else f"{name!r} is not {noun}")
    return value
