"""Reading and writing files, whole or not at all; and where each image goes."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image

LARGEST_FILE = 2**31 - 1  # bytes of an encoded image, which is also what Arrow holds
TOO_LARGE = "2 GiB or larger"
_LONGEST_NAME = 255  # bytes of a file's name on nearly every disk


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Hand out a temporary path, which takes the place of ``path`` when the block ends without an error.

    A crash or a full disk leaves what was there before. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_temporary(path)}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all, also if the machine loses power; remove what a killed writer left of it."""
    for leftover in path.parent.glob(f"{_temporary(path)}.*.tmp"):
        leftover.unlink(missing_ok=True)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _temporary(path: Path) -> str:
    """The start of a name that is short, as ``path`` may have the longest name that the disk takes."""
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}"


def read_bytes(path: str | bytes | Path) -> bytes:
    """Read a regular file; of others, a pipe would wait and a device never end.

    Raises:
        OSError: not there, not a regular file, or too large.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > LARGEST_FILE:
        raise OSError(errno.EFBIG, TOO_LARGE)
    with open(path, "rb") as file:
        return file.read()


def one_line(error: BaseException) -> str:
    """The message of an error in one line; its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(text: str) -> str:
    """Replace what would move a terminal's cursor or change its colours, as a file's name may."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or nested so deeply that Python will not read it.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
    """Choose a PNG path below ``folder`` for each name: ``a/cat.jpg`` becomes ``a/cat.png``.

    Names that would share a path, or stand where another needs a folder, are kept whole: ``a/cat.jpg.png``; if that
    does not help, they get a number. Names that are too long for a disk are cut, and end in a digest.

    Raises:
        ValueError: a name that would leave the folder (names may come from a file that somebody else made).
    """
    attempts = dict.fromkeys(names, 0)
    for name in attempts:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or not parts.name or PureWindowsPath(name).drive or "\0" in name:
            raise ValueError(f"refused: the image's name '{name}' points outside the output folder")
    while True:
        paths = {name: _png_path(name, attempt) for name, attempt in attempts.items()}
        folders = {str(parent).casefold() for path in paths.values() for parent in path.parents}
        sharing: dict[str, list[str]] = {}
        for name, path in paths.items():
            sharing.setdefault(str(path).casefold(), []).append(name)
        changed = False
        for shared, own in sharing.items():
            whole = [name for name in own if attempts[name] > 0]
            for name in own:
                if shared in folders or (len(own) > 1 and name not in whole[:1]):
                    attempts[name] += 1 + (whole.index(name) if name in whole else 0)
                    changed = True
        if not changed:
            return {name: Path(folder, path) for name, path in paths.items()}


def _png_path(name: str, attempt: int) -> PurePosixPath:
    path = PurePosixPath(name)
    if attempt == 0:
        path = path.with_suffix(".png")
    else:
        path = path.with_name(path.name + (f"#{attempt}.png" if attempt > 1 else ".png"))
    return PurePosixPath(*map(_short_enough, path.parts))


def _short_enough(part: str) -> str:
    encoded = part.encode("utf-8", "surrogateescape")
    if len(encoded) <= _LONGEST_NAME:
        return part
    ending = f"~{hashlib.sha256(encoded).hexdigest()[:16]}{'.png' if part.endswith('.png') else ''}"
    return encoded[: _LONGEST_NAME - len(ending)].decode("utf-8", "ignore") + ending


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; read in blocks, so that a large file takes no memory."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
