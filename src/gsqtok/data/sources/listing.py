"""What a path, a glob or a brace pattern stands for: a listing of images, of parquet files or of tar shards."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from braceexpand import braceexpand

Kind = Literal["image", "parquet", "tar"]

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".ico", ".qoi"),
)
_KINDS: dict[str, Kind] = dict.fromkeys(IMAGE_SUFFIXES, "image")
_KINDS |= {".parquet": "parquet", **dict.fromkeys((".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz"), "tar")}

_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test"}
_SPLIT_NAMES |= dict.fromkeys(("validation", "val", "valid", "dev"), "validation")

_logger = logging.getLogger("gsqtok.data")


class SourceFile(NamedTuple):
    """One file of a source.

    Attributes:
        path: where it is.
        name: its name within the source, with forward slashes; bytes that are not UTF-8 as backslash escapes.
        stamp: see ``stamp``; "" for images, of which there may be millions.
    """

    path: str
    name: str
    stamp: str = ""


class SplitError(ValueError):
    """A source has several splits, and none is named.

    Attributes:
        option: that names one, for the message; what opens a source for a command says which that is.
    """

    option = "split (in the shell --split)"

    def __init__(self, source: str, choices: Sequence[str]) -> None:
        super().__init__(source, choices)
        self.source, self.choices = source, choices

    def __str__(self) -> str:
        return f"{self.source} has several splits: name one with {self.option}, which may be {', '.join(self.choices)}"


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
    kinds: dict[Kind, list[SourceFile]] = {}
    others = []
    for path, name in _expand(str(source)):
        kind = _kind(name)
        if kind is None:
            others.append(name)
        else:
            kinds.setdefault(kind, []).append(SourceFile(path, name))
    if not kinds and not others:
        raise ValueError(f"the folder {str(source)!r} is empty")
    if not kinds:
        raise ValueError(f"no image, parquet file or tar shard among the {len(others)} files of {str(source)!r}")
    if len(kinds) > 1:
        found = ", ".join(f"{len(files)} {kind} files" for kind, files in kinds.items())
        raise ValueError(f"{str(source)!r} holds {found}: name one kind with a pattern such as '*.parquet'")
    if others:
        _logger.warning("%s: %s", source, left_out(others))
    ((kind, files),) = kinds.items()
    files = _of_split(source, kind, files, split)
    names = map(UniqueKeys(), (as_text(file.name) for file in files))
    if kind == "image":
        return kind, [SourceFile(file.path, name) for file, name in zip(files, names, strict=True)]
    for file in files:
        if not os.path.isfile(file.path):
            raise ValueError(f"{as_text(file.path)!r} is not a regular file")
        if file.path != as_text(file.path):
            raise ValueError(f"the path {as_text(file.path)!r} is not UTF-8: rename it")
    return kind, [SourceFile(file.path, name, stamp(file.path)) for file, name in zip(files, names, strict=True)]


def left_out(names: Sequence[str]) -> str:
    """Count and name files that are no images, for a message; "" where there are none."""
    shown = ", ".join(repr(as_text(name)) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return f"left out {len(names)} files that are not images: {shown}" if names else ""


class UniqueKeys:
    """Makes keys unique: the second ``a.png`` becomes ``a.png#2``, which no image's name can be."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def __call__(self, key: str) -> str:
        self._seen[key] += 1
        return key if self._seen[key] == 1 else f"{key}#{self._seen[key]}"


def may_be_on_hub(source: str | Path) -> bool:
    """Whether this could be the name of a hub data set, ``owner/name``: no such path, nor a folder ``owner``."""
    text = str(source)
    is_name = isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", text) and text[0] != "."
    return bool(is_name) and not os.path.exists(text) and not os.path.exists(text.split("/")[0])


def check_outside(source: str | Path | Sequence[str | Path], output: str | Path) -> None:
    """Refuse to write where a source is read: the next reader would take the output for images.

    Raises:
        ValueError: the output is a source's folder, or lies in one that is searched with its subfolders.
    """
    for one in [source] if isinstance(source, (str, Path)) else source:
        root = str(one).partition("**")[0] or "."
        if os.path.isdir(root) and Path(output).resolve().is_relative_to(Path(root).resolve()):
            raise ValueError(f"the output {output} lies in the source {one}: choose a folder outside of it")


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
    if os.path.exists(source):
        yield source, os.path.basename(source)
        return
    if not any(mark in source for mark in "*?[{"):
        raise FileNotFoundError(f"no file or folder {source!r}")
    paths: set[str] = set()
    for pattern in braceexpand(source, escape=False):
        matches = [path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path)]
        if not matches:
            raise FileNotFoundError(f"no file matches {pattern!r}")
        paths.update(matches)
    folders = {os.path.dirname(path) for path in paths}
    root = os.path.commonpath(folders) if len(folders) > 1 else folders.pop()
    for path in sorted(paths):
        yield path, Path(os.path.relpath(path, root or ".")).as_posix()


def _walk(root: str) -> Iterator[tuple[str, str]]:
    """Path and name of every file below a folder; links to folders are followed, but not back up."""
    found = []
    folders: list[tuple[str, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while folders:
        folder, above = folders.pop()
        status = os.stat(folder)
        own = (status.st_dev, status.st_ino)
        if own in above:
            _logger.warning("left out %s, which leads back to a folder above it", as_text(folder))
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append((entry.path, above | {own}))
                else:
                    found.append(entry.path)
    start = len(os.path.join(root, ""))
    named = [(path, path[start:].replace(os.sep, "/")) for path in found]
    yield from sorted(named, key=lambda pair: pair[1])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


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
            raise SplitError(repr(str(source)), [*sorted(found), "all"])
    return files


def _possible_splits(name: str) -> set[str]:
    """The folders above a file and the start of its name, any of which may name its split."""
    path = Path(name)
    return {_canonical(part) for part in (*path.parts[:-1], re.split(r"[-_.]", path.name)[0])}


def _canonical(split: str) -> str:
    return _SPLIT_NAMES.get(split.lower(), split)


def stamp(path: str | bytes) -> str:
    """Size and modification time, by which a changed file is noticed; "" where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def as_text(name: str) -> str:
    """A file's name; bytes that are not UTF-8 become backslash escapes, for a key must be text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
