"""What was measured and how: one JSON file that a report, a table or another run can trust.

A file holds a JSON object:

- ``format``: ``"gsqtok-evaluation-2"``;
- ``model``: name, fingerprint (SHA-256, or null for a codec), quantizer, factor, bits_per_position, bits_per_pixel
  (nominal), precision ("float32", ...), tile (null: whole images), parameters; null where one does not apply;
- ``data``: source, split, images (measured), skipped (could not be read), fingerprint (see
  `gsqtok.evaluation.fingerprint`);
- ``protocol``: name, size, crop, resize_filter, antialias, rounding ("8 bits"), features (null, or network,
  weights_sha256, input_size, resize), reference (what the Fréchet distance compares with: "originals", or the data
  fingerprint and count of a saved reference set);
- ``metrics``: numbers by name. Null where a metric is not defined (the SSIM of images under 11 pixels);
- ``per_image``: ``key`` and the metrics of each image, lists of equal length, in the data set's order;
- ``codebook``: counts_sorted (at most 1024 points of the sorted counts, the largest first), codebook_size, groups,
  positions and more; or null;
- ``images``: a few originals with reconstructions and tokens, as paths relative to the file: key, rank ("best",
  "median" or "worst" by PSNR), original, reconstruction, tokens;
- ``environment``: versions, device, date, command, seconds.

`gsqtok.evaluation.evaluate` measures a tokenizer, `gsqtok.evaluation.measure` anything else that turns images into
images, such as an image codec.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gsqtok.io import atomic_write, json_values, read_json

FORMAT = "gsqtok-evaluation-2"
_PREPARATION = ("size", "crop", "resize_filter", "antialias")


def _is_number(value: Any) -> bool:  # no metric comes near the bound, and no plot stumbles over it
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e100


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


_KINDS: dict[str, Callable[[Any], bool]] = {
    "there": lambda value: True,
    "text": lambda value: isinstance(value, str),
    "a number": _is_number,
    "a count": _is_count,
    "a positive integer": lambda value: _is_count(value) and value > 0,
    "an object": lambda value: isinstance(value, dict),
    "a list of counts": lambda value: isinstance(value, list) and all(map(_is_count, value)),
    "a list of text": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "a list of numbers": lambda value: isinstance(value, list) and all(n is None or _is_number(n) for n in value),
    "one of best, median, worst": lambda value: value in ("best", "median", "worst"),
}
# part -> kind -> the names that must be there; those with a question mark may be null
_REQUIRED = {
    "model": {
        "text": "name? fingerprint? quantizer? precision?",
        "a number": "bits_per_position? bits_per_pixel?",
        "a positive integer": "factor?",
    },
    "data": {"text": "source? split? fingerprint?", "a count": "images skipped"},
    "protocol": {
        "text": "name crop rounding resize_filter?",
        "a positive integer": "size?",
        "an object": "features?",
        "there": "antialias? reference?",
    },
    "codebook": {
        "a list of counts": "counts_sorted",
        "a positive integer": "codebook_size groups",
        "a count": "positions",
    },
    "images": {"text": "key original reconstruction", "one of best, median, worst": "rank"},
}


class ResultError(ValueError):
    """A file that is no result of an evaluation; the message says which file, and what is wrong with it."""


@dataclass(eq=False)
class Result(Mapping):
    """One evaluation. As a mapping it is its metrics: ``result["psnr"]``, ``"rfid" in result``, ``dict(result)``.

    The attributes are the parts listed at the top of this module.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    protocol: dict[str, Any]
    metrics: dict[str, float]
    per_image: dict[str, list[Any]] = field(default_factory=dict)
    codebook: dict[str, Any] | None = None
    images: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    @property
    def bits_per_pixel(self) -> float | None:
        """What the images took; the model's nominal bits per pixel where they were not counted."""
        value = self.metrics.get("bits_per_pixel")
        return self.model["bits_per_pixel"] if value is None else value

    def to_dict(self) -> dict[str, Any]:
        """Return what `save` writes: plain values, None for numbers that are not finite."""
        return {"format": FORMAT, **json_values(asdict(self))}

    def save(self, path: str | Path) -> None:
        """Write the JSON file, whole or not at all."""
        with atomic_write(path) as temporary:
            temporary.write_text(
                json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n", "utf-8"
            )

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ResultError: no JSON, another format, or parts that are missing or of the wrong kind.
        """
        try:
            return cls.from_dict(read_json(Path(path)))
        except ResultError as error:
            raise ResultError(f"{path}: {error}") from None
        except ValueError as error:
            raise ResultError(f"{path} is not a JSON file: {error}") from error

    @classmethod
    def from_dict(cls, values: Any) -> Result:
        """Build a result from parsed JSON, every part checked; raises ResultError."""
        if not isinstance(values, dict) or "format" not in values:
            raise ResultError("not the result of an evaluation: write one with `gsqtok evaluate ... -o FILE`")
        if values["format"] != FORMAT:
            raise ResultError(
                f"format {reprlib.repr(values['format'])} is not {FORMAT!r}: measure again with this version"
            )
        try:  # JSON can name half a surrogate pair, which no terminal and no file can hold
            json.dumps(values, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ResultError(f"text that is not Unicode: {error.object[error.start :][:1]!a}") from None
        parts: dict[str, Any] = {"per_image": {}, "images": [], "environment": {}} | values
        del parts["format"]
        if unknown := sorted(parts.keys() - cls.__dataclass_fields__.keys()):
            raise ResultError(f"unknown part {reprlib.repr(unknown[0])}")
        for part in ("model", "data", "protocol", "codebook"):
            if part != "codebook" or parts.get(part) is not None:
                _check(parts, part, "an object")
                _check_fields(part, parts[part])
        if "tokens" in (parts.get("codebook") or {}):  # where groups were left out, older results did not say
            _check(parts["codebook"], "tokens", "a count", "'codebook' ")
        for part in ("metrics", "per_image", "environment"):
            _check(parts, part, "an object")
        for name in parts["metrics"]:
            _check(parts["metrics"], name, "a number", "metric ", null=True)
        _check_images(parts["per_image"], parts["images"])
        return cls(**parts)


def _check_images(per_image: dict[str, Any], images: Any) -> None:
    for name in {"key": None, **per_image} if per_image else ():
        _check(per_image, name, "a list of text" if name == "key" else "a list of numbers", "'per_image' ")
    if len({len(column) for column in per_image.values()}) > 1:
        raise ResultError("'per_image' must hold lists of one length")
    if len(set(per_image.get("key", []))) < len(per_image.get("key", [])):
        raise ResultError("'per_image' names an image twice")
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise ResultError(f"'images' is not a list of objects but {reprlib.repr(images)}")
    for image in images:
        _check_fields("images", image)


def _check_fields(part: str, values: dict[str, Any]) -> None:
    for kind, names in _REQUIRED[part].items():
        for name in names.split():
            _check(values, name.removesuffix("?"), kind, f"{part!r} ", null=name.endswith("?"))


def _check(values: dict[str, Any], name: str, kind: str, where: str = "", null: bool = False) -> None:
    """Raise a ResultError unless ``name`` is there and of the kind, or null where that may be."""
    if name not in values:
        raise ResultError(f"{where}lacks {name!r}")
    value = values[name]
    if not (null and value is None) and not _KINDS[kind](value):
        raise ResultError(f"{where}{reprlib.repr(name)} is not {kind} but {reprlib.repr(value)}")


def differences(a: Result, b: Result) -> list[str]:
    """List why the metrics of two results must not be compared, one line each; empty where they may be.

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
    """List what two protocols do not share, one line each."""
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
