"""Writing pictures: where each goes, whole or not at all."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from PIL import Image


def picture_paths(folder: str | Path, names: Iterable[str]) -> dict[str, Path]:
    """A PNG path below ``folder`` for each name: ``a/cat.jpg`` becomes ``a/cat.png``.

    Where that would give two pictures one path, they keep their whole names: ``a/cat.jpg.png``.

    Raises:
        ValueError: a name that would leave the folder (names may come from a file that somebody else made).
    """
    names = list(names)
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or not parts.name or PureWindowsPath(name).drive or "\0" in name:
            raise ValueError(f"refused: the picture's name '{name}' points outside the output folder")
    paths = {name: str(PurePosixPath(name).with_suffix(".png")) for name in names}
    while True:  # a whole name may take the path of a third picture, which then keeps its whole name, too
        taken = Counter(path.casefold() for path in paths.values())
        whole = {n: f"{n}.png" for n, path in paths.items() if taken[path.casefold()] > 1 and path != f"{n}.png"}
        if not whole:
            return {name: Path(folder, path) for name, path in paths.items()}
        paths |= whole


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG aside and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        picture.save(aside, format="PNG")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
