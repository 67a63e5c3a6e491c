"""Tar shards in the WebDataset layout: an index of where samples begin, and reading from there."""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from gsqtok.data.files import IMAGE_SUFFIXES, as_text
from gsqtok.data.source import check_end

_BROKEN = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)
DAMAGED = -1  # stands for an offset where the rest of a shard cannot be read


class Sample(NamedTuple):
    """Members that belong together: a run of files with the same name up to the first dot.

    Attributes:
        offset: of the sample's first header, in bytes of the uncompressed archive.
        images: (member name, its bytes) of each image; None while indexing, or where the shard ends too early.
        label: of the ``.cls`` member.
        caption: of the ``.txt`` member.
    """

    offset: int
    images: list[tuple[str, bytes | None]]
    label: int | None
    caption: str | None


class Piece(NamedTuple):
    """A stretch of a shard: where it begins, its images' names in order, and the damage after it, if any."""

    offset: int
    names: list[str]


def index(path: str, images: int) -> Iterator[Piece]:
    """Pieces of about so many images, whole samples each; only headers are read.

    A shard that cannot be read to its end gives a last piece at ``DAMAGED`` whose one name says where and why.
    """
    offset, names, last = 0, [], "the start"
    try:
        for sample in _samples(path, 0, read=False):
            if names and len(names) + len(sample.images) > images:
                yield Piece(offset, names)
                names = []
            if not names:
                offset = sample.offset
            names += [name for name, _ in sample.images]
            last = names[-1] if names else last
        error = None
    except _Damage as damage:
        error = str(damage)
    if names:
        yield Piece(offset, names)
    if error is not None:
        yield Piece(DAMAGED, [f"(unreadable after {last}: {error})"])


def read(path: str, offset: int) -> Iterator[Sample]:
    """The samples from an offset on, to the end of the shard."""
    return _samples(path, offset, read=True)


class _Damage(Exception):
    pass


def _samples(path: str, offset: int, read: bool) -> Iterator[Sample]:
    with _opened(path) as file:
        file.seek(offset)
        prefix, sample = None, Sample(0, [], None, None)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    archive.members = []  # or the listing of the whole shard stays in memory
                    folder, name = os.path.split(as_text(member.name).removeprefix("./"))
                    stem = name.partition(".")[0]
                    if not member.isfile() or not stem:  # hidden files have no stem
                        continue
                    if (folder, stem) != prefix:
                        if sample.images:
                            yield sample
                        prefix, sample = (folder, stem), Sample(member.offset, [], None, None)
                    sample = _with(sample, archive, member, f"{folder}/{name}" if folder else name, read)
                check_end(archive)
            damage = None
        except _BROKEN as error:
            damage = " ".join(str(error).split()) or type(error).__name__
    if sample.images:
        yield sample
    if damage is not None:
        raise _Damage(damage)


def _with(sample: Sample, archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, read: bool) -> Sample:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        sample.images.append((name, _content(archive, member) if read else None))
    elif read and suffix == ".cls":
        text = (_content(archive, member) or b"").decode(errors="replace").strip()
        return sample._replace(label=int(text) if re.fullmatch(r"-?\d{1,18}", text) else None)
    elif read and suffix == ".txt":
        return sample._replace(caption=(_content(archive, member) or b"").decode(errors="replace"))
    return sample


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    try:
        return archive.extractfile(member).read()
    except _BROKEN:
        return None


def _opened(path: str) -> BinaryIO:
    file = open(path, "rb")  # noqa: SIM115
    if file.read(2) == b"\x1f\x8b":
        file.close()
        return gzip.open(path)  # where seeking forward means decompressing
    return file
