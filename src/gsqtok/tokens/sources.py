"""A source as a fixed sequence of chunks that anybody can read alone: what the plan of a run is made of."""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gsqtok.data.files import SourceFile, find_files, may_be_on_hub
from gsqtok.data.source import extra_columns, image_column, open_source, row_key
from gsqtok.tokens import tars

# Errors of one file; any other, such as a server that is gone, must not make rejects of a whole data set.
_OWN_ERRORS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)


class Row(NamedTuple):
    """One image, encoded; or why it cannot even be read.

    Attributes:
        key: unique within the source.
        data: the encoded bytes.
        columns: values of the columns carried along.
        error: the reason, where there is no data.
    """

    key: str
    data: bytes | None
    columns: dict[str, Any]
    error: str | None = None


class Span(NamedTuple):
    """A stretch of a source.

    Attributes:
        file: its number in the listing (0 where rows are addressed by number alone).
        first: its first row, in the file (in the row group, for parquet).
        count: how many rows.
        place: byte offset in a tar shard; row group of a parquet file.
        names: (row of the span, key) where the key is not what the rule would give.
    """

    file: int
    first: int
    count: int
    place: int = 0
    names: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """A span with all that a process elsewhere needs to read it: ``rows()`` gives its images in order."""

    span: Span
    read: Callable[..., Iterator[Row]]
    arguments: tuple[Any, ...]

    def rows(self) -> Iterator[Row]:
        """Every row of the span.

        Raises:
            OSError: the source is out of reach.
            ValueError: the source is no longer what it was when the plan was made.
        """
        found = 0
        for row in self.read(self.span, *self.arguments):
            found += 1
            yield row
        if found != self.span.count:
            place = self.arguments[0] if self.arguments else ""
            raise ValueError(f"the source has changed: {found} images instead of {self.span.count} in {place}")


@dataclass(frozen=True)
class ImageSource:
    """Where images come from.

    Attributes:
        digest: of names, sizes and times of all files: another digest is another source.
        fields: the columns carried along, as they will be in the shards.
        spans: ``spans(n)`` cuts the source into stretches of at most about n images, each with its keys.
        chunk: makes a span readable anywhere.
    """

    digest: str
    fields: tuple[pa.Field, ...]
    spans: Callable[[int], Iterator[tuple[Span, list[str]]]]
    chunk: Callable[[Span], Chunk]


def open_images(source: str | Path, split: str | None = None, carry: Sequence[str] = ()) -> ImageSource:
    """Open a folder, parquet files, tar shards (each a folder, file, glob or brace pattern) or a data set of the hub.

    Args:
        source: see ``gsqtok.data.open_source``, which gives the same keys.
        split: the split to take, where there are several.
        carry: columns of the source to carry along, where it has them.

    Raises:
        FileNotFoundError, ValueError: see ``open_source``.
    """
    if may_be_on_hub(source):
        return _hub(str(source), split, carry)
    kind, files = find_files(source, split)
    digest = hashlib.sha256(json.dumps([kind, [[file.name, file.stamp] for file in files]]).encode()).hexdigest()
    return {"image": _images, "parquet": _parquet, "tar": _tars}[kind](digest, files, carry)


def _cut(total: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(0, total, size):
        yield first, min(size, total - first)


# Image files


def _images(digest: str, files: list[SourceFile], carry: Sequence[str]) -> ImageSource:
    def spans(size: int) -> Iterator[tuple[Span, list[str]]]:
        for first, count in _cut(len(files), size):
            yield Span(0, first, count), [file.name for file in files[first : first + count]]

    def chunk(span: Span) -> Chunk:
        own = [(file.path, file.name) for file in files[span.first : span.first + span.count]]
        return Chunk(span, _read_images, (own,))

    return ImageSource(digest, (), spans, chunk)


def _read_images(span: Span, files: list[tuple[str, str]]) -> Iterator[Row]:
    for path, key in files:
        try:
            yield Row(key, Path(path).read_bytes(), {})
        except OSError as error:
            os.stat(os.path.dirname(path) or ".")  # raises where not the file but its whole folder is out of reach
            if error.errno not in _OWN_ERRORS:
                raise
            yield Row(key, None, {}, f"cannot be read: {error.strerror}")


# Parquet files


def _parquet(digest: str, files: list[SourceFile], carry: Sequence[str]) -> ImageSource:
    images, schemas, groups = [], [], []
    for file in files:
        try:
            metadata = pq.read_metadata(file.path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file.path!r} is not a readable parquet file: {_one_line(error)}") from None
        schema = metadata.schema.to_arrow_schema().remove_metadata()
        features = dict(zip(schema.names, schema.types, strict=True))
        images.append(image_column(features, file.path))
        own = [name for name in extra_columns(features, images[-1]) if name in carry]
        schemas.append({name: pa.field(name, schema.field(name).type) for name in own})
        groups.append([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
    fields = tuple(f for f in schemas[0].values() if all(other.get(f.name) == f for other in schemas))
    if not sum(map(sum, groups)):
        raise ValueError(f"the parquet files hold no rows: {', '.join(file.path for file in files[:3])}")

    def spans(size: int) -> Iterator[tuple[Span, list[str]]]:
        for number, file in enumerate(files):
            start = 0
            for group, rows in enumerate(groups[number]):
                for first, count in _cut(rows, size):
                    keys = [row_key(file, start + row) for row in range(first, first + count)]
                    yield Span(number, first, count, group), keys
                start += rows

    def chunk(span: Span) -> Chunk:
        file, start = files[span.file], sum(groups[span.file][: span.place])
        return Chunk(span, _read_parquet, (file, start, images[span.file], tuple(f.name for f in fields)))

    return ImageSource(digest, fields, spans, chunk)


def _read_parquet(span: Span, file: SourceFile, start: int, image: str, columns: tuple[str, ...]) -> Iterator[Row]:
    keys = [row_key(file, start + row) for row in range(span.first, span.first + span.count)]
    try:
        table = _row_group(file.path, span.place, (image, *columns))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # Arrow's own complaints of the content have none
            raise
        for key in keys:
            yield Row(key, None, dict.fromkeys(columns), f"row group cannot be read: {_one_line(error)}")
        return
    for key, values in zip(keys, table.slice(span.first, span.count).to_pylist(), strict=False):
        value = values.pop(image)
        data = value.get("bytes") if isinstance(value, dict) else value
        yield Row(key, data, values, None if data is not None else "neither bytes nor a path")


@functools.lru_cache(1)
def _row_group(path: str, group: int, columns: tuple[str, ...]) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=list(columns))


# Tar shards


def _tars(digest: str, files: list[SourceFile], carry: Sequence[str]) -> ImageSource:
    fields = [pa.field("label", pa.int64()), pa.field("caption", pa.string())]
    fields = tuple(field for field in fields if field.name in carry)

    def spans(size: int) -> Iterator[tuple[Span, list[str]]]:
        nothing = True
        for number, file in enumerate(files):
            first, seen = 0, {}
            for piece in tars.index(file.path, size):
                nothing = False
                keys, renamed = [], []
                for row, name in enumerate(piece.names):
                    key = f"{file.name}/{name}"
                    seen[key] = seen.get(key, 0) + 1
                    if seen[key] > 1:  # a tar file may hold a name twice
                        key = f"{key}#{seen[key]}"
                        renamed.append((row, key))
                    elif piece.offset == tars.DAMAGED:
                        renamed.append((row, key))
                    keys.append(key)
                yield Span(number, first, len(keys), piece.offset, tuple(renamed)), keys
                first += len(keys)
        if nothing:
            raise ValueError(f"no image in the tar shards {', '.join(file.path for file in files[:3])}")

    def chunk(span: Span) -> Chunk:
        return Chunk(span, _read_tar, (files[span.file], tuple(field.name for field in fields)))

    return ImageSource(digest, fields, spans, chunk)


def _read_tar(span: Span, file: SourceFile, columns: tuple[str, ...]) -> Iterator[Row]:
    renamed = dict(span.names)
    if span.place == tars.DAMAGED:
        for key in renamed.values():
            yield Row(key, None, dict.fromkeys(columns), "the rest of the tar shard cannot be read")
        return
    images = (
        (name, data, {"label": sample.label, "caption": sample.caption})
        for sample in tars.read(file.path, span.place)
        for name, data in sample.images
    )
    for row, (name, data, values) in enumerate(itertools.islice(images, span.count)):
        key = renamed.get(row, f"{file.name}/{name}")
        error = "truncated: the tar shard ends before it does" if data is None else None
        yield Row(key, data, {column: values[column] for column in columns}, error)


# The hub


def _hub(name: str, split: str | None, carry: Sequence[str]) -> ImageSource:
    dataset = _hub_dataset(name, split)
    schema = dataset.features.arrow_schema
    fields = tuple(pa.field(column, schema.field(column).type) for column in carry if column in schema.names)

    def spans(size: int) -> Iterator[tuple[Span, list[str]]]:
        keys = dataset.select_columns(["key"])
        for first, count in _cut(len(dataset), size):
            yield Span(0, first, count), keys[first : first + count]["key"]

    def chunk(span: Span) -> Chunk:
        return Chunk(span, _read_hub, (name, split, tuple(field.name for field in fields)))

    digest = hashlib.sha256(json.dumps(["hub", name, split, len(dataset), str(dataset.features)]).encode()).hexdigest()
    return ImageSource(digest, fields, spans, chunk)


def _read_hub(span: Span, name: str, split: str | None, columns: tuple[str, ...]) -> Iterator[Row]:
    rows = _hub_dataset(name, split).select_columns(["image", "key", *columns])
    for number in range(span.first, span.first + span.count):
        values = rows[number]
        image, key = values.pop("image"), values.pop("key")
        data = None if image is None else image.get("bytes")
        if data is None and image is not None and image.get("path"):
            ((data, error),) = [(row.data, row.error) for row in _read_images(span, [(image["path"], key)])]
            yield Row(key, data, values, error)
        else:
            yield Row(key, data, values, None if data is not None else "neither bytes nor a path")


@functools.lru_cache(1)
def _hub_dataset(name: str, split: str | None) -> Any:
    return open_source(name, split=split)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
