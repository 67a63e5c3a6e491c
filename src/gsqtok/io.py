"""Writing files whole or not at all, and where each image goes."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the place of ``path`` when the block ends without an error.

    A crash or a full disk leaves what was there before. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def json_values(value: Any) -> Any:
    """Nested values as JSON holds them: keys are text, tuples lists, and numbers that are not finite None."""
    if isinstance(value, dict):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    return value


def image_paths(folder: str | Path, names: Iterable[str]) -> dict[str, Path]:
    """A PNG path below ``folder`` for each name: ``a/cat.jpg`` becomes ``a/cat.png``.

    Where that would give two images one path, they keep their whole names: ``a/cat.jpg.png``.

    Raises:
        ValueError: a name that would leave the folder (names may come from a file that somebody else made).
    """
    names = list(names)
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or not parts.name or PureWindowsPath(name).drive or "\0" in name:
            raise ValueError(f"refused: the image's name '{name}' points outside the output folder")
    paths = {name: str(PurePosixPath(name).with_suffix(".png")) for name in names}
    while True:  # a whole name may take the path of a third image, which then keeps its whole name, too
        taken = Counter(path.casefold() for path in paths.values())
        whole = {n: f"{n}.png" for n, path in paths.items() if taken[path.casefold()] > 1 and path != f"{n}.png"}
        if not whole:
            return {name: Path(folder, path) for name, path in paths.items()}
        paths |= whole


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with written_aside(path) as aside:
        image.save(aside, format="PNG")


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; read in blocks, so that a large file takes no memory."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
