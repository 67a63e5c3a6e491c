"""What a path, a glob or a brace pattern stands for: a listing of images, of parquet files or of tar shards."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["image", "parquet", "tar"]

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".ico", ".qoi"),
)
_KINDS: dict[str, Kind] = dict.fromkeys(IMAGE_SUFFIXES, "image")
_KINDS |= {".parquet": "parquet", ".tar": "tar", ".tgz": "tar", ".tar.gz": "tar"}

_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test"}
_SPLIT_NAMES |= dict.fromkeys(("validation", "val", "valid", "dev"), "validation")

_logger = logging.getLogger("gsqtok.data")


class SourceFile(NamedTuple):
    """One file of a source.

    Attributes:
        path: where it is.
        name: its name within the source, with forward slashes; bytes that are not UTF-8 as backslash escapes.
        stamp: size and modification time, so that a cache notices a changed file; "" for images, which have none.
    """

    path: str
    name: str
    stamp: str = ""


def find_files(source: str | Path, split: str | None = None) -> tuple[Kind, list[SourceFile]]:
    """List what a source holds, sorted by name.

    Args:
        source: a folder (searched recursively, hidden files left out), a file, a glob, or a brace pattern such as
            ``shard-{000..017}.tar``.
        split: keep only the files of this split: those in a folder of this name, or whose name starts with it
            (``train-00000-of-00002.parquet``, ``val/shard-00.tar``); "all" keeps every file.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: an empty folder, no image among the files, several kinds of file, or several splits and none named.
    """
    named = list(_expand(str(source)))
    if not named:
        raise ValueError(f"the folder {str(source)!r} is empty")
    kinds: dict[Kind, list[SourceFile]] = {}
    others = []
    for path, name in named:
        kind = _kind(name)
        if kind is None:
            others.append(name)
        elif kind != "image" and path != as_text(path):
            raise ValueError(f"the path {as_text(path)!r} is not UTF-8: rename it")
        else:
            kinds.setdefault(kind, []).append(SourceFile(path, as_text(name)))
    if not kinds:
        raise ValueError(f"no image, parquet file or tar shard among the {len(others)} files of {str(source)!r}")
    if len(kinds) > 1:
        found = ", ".join(f"{len(files)} {kind} files" for kind, files in kinds.items())
        raise ValueError(f"{str(source)!r} holds {found}: name one kind with a pattern such as '*.parquet'")
    if others:
        shown = ", ".join(repr(name) for name in others[:3]) + (", ..." if len(others) > 3 else "")
        _logger.warning("%s: left out %d files that are not images: %s", source, len(others), shown)
    ((kind, files),) = kinds.items()
    files = _of_split(source, kind, files, split)
    if kind != "image":
        files = [file._replace(stamp=_stamp(file.path)) for file in files]
    return kind, files


def may_be_on_hub(source: str | Path) -> bool:
    """Whether this could be the name of a hub data set, ``owner/name``: no such path, nor a folder ``owner``."""
    text = str(source)
    is_name = isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", text) and text[0] != "."
    return bool(is_name) and not os.path.exists(text) and not os.path.exists(text.split("/")[0])


def distinct_names(sources: Sequence[str | Path]) -> list[str]:
    """The shortest trailing parts of the paths, of one length, that tell them apart, in order.

    One length, so that ``a/x`` inside a folder never gets the name of a file ``a/x`` listed beside it.

    Raises:
        ValueError: a source is listed twice.
    """
    parts = [Path(os.path.abspath(source)).parts for source in sources]
    seen = set()
    for source, part in zip(sources, parts, strict=True):
        if part in seen:
            raise ValueError(f"the source {str(source)!r} is listed twice")
        seen.add(part)
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]).lstrip("/") for part in parts]


def _expand(source: str) -> Iterator[tuple[str, str]]:
    """Path and name of every file, sorted by name."""
    if os.path.isdir(source):
        yield from _walk(source)
        return
    if os.path.isfile(source):
        yield source, os.path.basename(source)
        return
    if not any(mark in source for mark in "*?[{"):
        raise FileNotFoundError(f"no file or folder {source!r}")
    paths = []
    for pattern in _expand_braces(source):
        matches = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        if not matches:
            raise FileNotFoundError(f"no file matches {pattern!r}")
        paths += matches
    paths = sorted(set(paths))
    root = os.path.dirname(paths[0]) if len(paths) == 1 else os.path.commonpath([os.path.dirname(p) for p in paths])
    for path in paths:
        yield path, Path(os.path.relpath(path, root or ".")).as_posix()


def _walk(root: str) -> Iterator[tuple[str, str]]:
    def fail(error: OSError) -> None:
        raise error

    found, visited = [], set()
    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a symbolic link back up
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    named = [(path, Path(os.path.relpath(path, root)).as_posix()) for path in found]
    yield from sorted(named, key=lambda pair: pair[1])


def _expand_braces(pattern: str) -> list[str]:
    """``a{1,2}`` -> a1, a2 and ``a{08..10}`` -> a08, a09, a10, as in a shell."""
    match = re.search(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds:
        first, last = int(bounds[1]), int(bounds[2])
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        options = [f"{i:0{width}d}" for i in range(first, last + 1)]
        if not options:
            raise ValueError(f"the range {match[0]} in {pattern!r} is empty")
    else:
        options = match[1].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [whole for option in options for whole in _expand_braces(head + option + tail)]


def _kind(name: str) -> Kind | None:
    suffixes = [suffix.lower() for suffix in Path(name).suffixes[-2:]]
    return _KINDS.get("".join(suffixes)) or _KINDS.get(suffixes[-1] if suffixes else "")


def _of_split(source: str | Path, kind: Kind, files: list[SourceFile], split: str | None) -> list[SourceFile]:
    if split == "all":
        return files
    if split is not None:
        kept = [file for file in files if _canonical(split) in _possible_splits(file.name)]
        if not kept:
            raise ValueError(f"no file of the split {split!r} among the {len(files)} {kind} files of {str(source)!r}")
        return kept
    if kind != "image":  # training on the validation files by oversight must not be the default
        found = {name for file in files for name in _possible_splits(file.name) & set(_SPLIT_NAMES.values())}
        if len(found) > 1:
            raise ValueError(f"{str(source)!r} holds the splits {', '.join(sorted(found))}: name one, or 'all'")
    return files


def _possible_splits(name: str) -> set[str]:
    """The folders above a file and the start of its name, any of which may name its split."""
    path = Path(name)
    return {_canonical(part) for part in (*path.parts[:-1], re.split(r"[-_.]", path.name)[0])}


def _canonical(split: str) -> str:
    return _SPLIT_NAMES.get(split.lower(), split)


def _stamp(path: str) -> str:
    status = os.stat(path)
    return f"{status.st_size}-{status.st_mtime_ns}"


def as_text(name: str) -> str:
    """A file's name; bytes that are not UTF-8 become backslash escapes, for a key must be text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
