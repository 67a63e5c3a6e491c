"""Tar shards in the WebDataset layout, plain or compressed by gzip, bzip2 or xz."""

from __future__ import annotations

import functools
import io
import itertools
import logging
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa

from gsqtok.data.sources.base import UNKNOWN, Part, Reader, Row, cut
from gsqtok.data.sources.listing import IMAGE_SUFFIXES, SourceFile, UniqueKeys, as_text, left_out
from gsqtok.io import LARGEST_FILE, TOO_LARGE, one_line

_INDEXED = 32  # shards whose index stays in memory
_BLOCK = 1 << 20  # bytes read at once: a header may promise more than there is
# What tarfile and decompressors raise for content; an OSError of that kind has no number.
_BROKEN: tuple[type[Exception], ...] = (
    *(tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, MemoryError, RecursionError, OSError),
    *(ValueError, LookupError, ArithmeticError),
)

_logger = logging.getLogger("gsqtok.data")


class TarShard(Part):
    """A row for every image; its key is ``<shard.tar>/<member>``.

    Consecutive members with the same name up to the first dot are a sample: ``.cls`` holds the label of its images,
    ``.txt`` their caption. Links, and whatever else has no bytes of its own, are skipped images; so is the rest of a
    damaged shard. Members of samples without an image are counted in the log. Counting reads all headers.
    """

    columns = (pa.field("label", pa.int64()), pa.field("caption", pa.string()))

    def __init__(self, file: SourceFile, texts: bool) -> None:
        self._file, self._texts = file, texts  # whether labels and captions are to be read

    def stamp(self) -> str:
        return f"{self._file.name}\0{self._file.stamp}"

    def __len__(self) -> int:
        return self._length

    @functools.cached_property
    def _length(self) -> int:
        return len(_index(self._file, self._texts))

    def spans(self, size: int | None) -> Iterator[tuple[int, int]]:
        return iter([(0, UNKNOWN)]) if size is None else cut(len(self), size)

    def keys(self, first: int, length: int) -> list[str]:
        return [entry.key for entry in _index(self._file, self._texts)[first : first + length]]

    def reader(self, first: int, length: int, columns: tuple[str, ...]) -> Reader:
        entries = None if length == UNKNOWN else _index(self._file, self._texts)[first : first + length]
        return functools.partial(_read, self._file, self._texts, entries, columns)


class _Member(NamedTuple):
    """What a header says: sample, name, place, and why there are no bytes; ``text`` of a label or caption."""

    sample: tuple[str, str]
    name: str
    offset: int = 0
    size: int = 0
    reason: str | None = None
    text: bytes | None = None


class _Entry(NamedTuple):
    """An image: where it is, or why it is skipped, and its extra columns."""

    key: str
    offset: int
    size: int
    reason: str | None
    label: int | None = None
    caption: str | None = None


def _read(file: SourceFile, texts: bool, entries: list[_Entry] | None, columns: tuple[str, ...]) -> Iterator[Row]:
    decompressed = _decompressed(file, os.getpid())
    with open(file.path, "rb") if decompressed is None else nullcontext(decompressed) as stream:
        for entry in _scan(file, texts) if entries is None else entries:
            data, reason = None, entry.reason
            if reason is None:
                try:
                    stream.seek(entry.offset)
                    data = _content(stream, entry.size)
                except _BROKEN as error:
                    reason = f"cannot be read: {_content_error(error)}"
            yield Row(entry.key, data, {column: getattr(entry, column) for column in columns}, reason)


@functools.lru_cache(1)
def _decompressed(file: SourceFile, process: int) -> BinaryIO | None:
    """The content of a compressed shard; it stays open, for the next span goes on where this one ends."""
    try:
        archive = tarfile.open(file.path)  # noqa: SIM115
    except _BROKEN as error:
        _content_error(error)
        return None
    if not isinstance(archive.fileobj, io.BufferedReader):
        return cast(BinaryIO, archive.fileobj)
    archive.close()
    return None


def _content_error(error: BaseException) -> str:
    """What is wrong with content; an error of the system is raised again."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return one_line(error)


@functools.lru_cache(_INDEXED)
def _index(file: SourceFile, texts: bool) -> list[_Entry]:
    return list(_scan(file, texts))


def _scan(file: SourceFile, texts: bool) -> Iterator[_Entry]:
    """Read headers, and with ``texts`` labels and captions; images are where the entries say."""
    unique, last = UniqueKeys(), "the start"
    others: list[str] = []
    for sample, group in itertools.groupby(_members(file, texts), key=lambda member: member.sample):
        members = list(group)
        if sample == _DAMAGE:
            key = f"{file.name}/(unreadable after {last}: {members[0].name})"
            yield _Entry(key, 0, 0, "the rest of the tar shard cannot be read")
            continue
        images = [member for member in members if _suffix(member.name) in IMAGE_SUFFIXES]
        others += [] if images else [member.name for member in members]
        found = {_suffix(member.name): member.text for member in members if member.text is not None}
        number = found.get(".cls", b"").decode(errors="replace").strip()
        label = int(number) if re.fullmatch(r"-?\d{1,18}", number) else None
        caption = found[".txt"].decode(errors="replace") if ".txt" in found else None
        for _, last, offset, size, reason, _ in images:
            yield _Entry(unique(f"{file.name}/{last}"), offset, size, reason, label, caption)
    if others:
        _tell(file, left_out(others))


@functools.cache
def _tell(file: SourceFile, message: str) -> None:
    """Warn once of each shard, however often it is read."""
    _logger.warning("%s: %s", file.path, message)


_DAMAGE = ("", "")  # as the sample of a member that stands for the rest of a shard; its name says what is wrong


def _members(file: SourceFile, texts: bool) -> Iterator[_Member]:
    archive = None
    try:
        with tarfile.open(file.path) as archive:
            stream = cast(BinaryIO, archive.fileobj)
            while (header := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # or the listing of the whole shard stays in memory
                if header.size < 0:
                    raise tarfile.ReadError("damaged header")
                folder, _, name = as_text(header.name).removeprefix("./").rpartition("/")
                stem, text = name.partition(".")[0], None
                if header.isdir() or not stem:  # hidden files have no stem
                    continue
                reason = _without_bytes(header)
                if texts and _suffix(name) in (".cls", ".txt") and reason is None:
                    stream.seek(header.offset_data)
                    text = _content(stream, header.size)
                name = f"{folder}/{name}" if folder else name
                yield _Member((folder, stem), name, header.offset_data, header.size, reason, text)
            stream.seek(archive.offset)
            _check_end(stream)
    except _BROKEN as error:
        reason = _content_error(error)
        yield _Member(_DAMAGE, "not a tar archive" if archive is None else reason)


def _check_end(stream: BinaryIO) -> None:
    """Look at what ``tarfile`` takes for the end of an archive, which is blocks of zeros, or nothing."""
    try:
        rest = stream.read(2 * tarfile.RECORDSIZE)
    except EOFError:  # of gzip's file alone, whose checksum is missing
        return
    if rest[: tarfile.BLOCKSIZE].strip(b"\0"):
        raise tarfile.ReadError("damaged header")
    if rest.strip(b"\0"):
        raise tarfile.ReadError("the archive ends, but not the file")


def _without_bytes(header: tarfile.TarInfo) -> str | None:
    if header.islnk() or header.issym():
        return f"a link to {as_text(header.linkname)!r}: links inside tar shards are not followed"
    if not header.isreg() or header.issparse():
        return "not a regular file"
    return TOO_LARGE if header.size > LARGEST_FILE else None


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _content(stream: BinaryIO, size: int) -> bytes:
    blocks = []
    while size and (block := stream.read(min(size, _BLOCK))):
        blocks.append(block)
        size -= len(block)
    if size:
        raise EOFError("the tar shard ends before it does")
    return b"".join(blocks)
