"""Parquet files with a column of encoded images."""

from __future__ import annotations

import functools
import itertools
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gsqtok.data.sources.base import Part, Reader, Row, cut
from gsqtok.data.sources.folder import read_files
from gsqtok.data.sources.listing import SourceFile
from gsqtok.io import one_line


class ParquetFile(Part):
    """A row for every row; its key is ``<file>-<row>``. Spans lie inside row groups.

    Raises:
        ValueError: not a readable parquet file, or no column of images.
    """

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        try:
            with pq.ParquetFile(file.path) as parquet:
                metadata, schema = parquet.metadata, parquet.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file.path!r} is not a readable parquet file: {one_line(error)}") from None
        self._image, self.columns = image_and_extra_columns(schema, file.path)
        groups = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        self._starts: list[int] = list(itertools.accumulate(groups, initial=0))

    def stamp(self) -> str:
        return f"{self._file.name}\0{self._file.stamp}"

    def __len__(self) -> int:
        return self._starts[-1]

    def spans(self, size: int | None) -> Iterator[tuple[int, int]]:
        for start, stop in itertools.pairwise(self._starts):
            for first, length in cut(stop - start, size or stop - start):
                yield start + first, length

    def keys(self, first: int, length: int) -> list[str]:
        name = self._file.name.removesuffix(".parquet")
        return [f"{name}-{row:06d}" for row in range(first, first + length)]

    def reader(self, first: int, length: int, columns: tuple[str, ...]) -> Reader:
        group = bisect_right(self._starts, first) - 1
        place = (self._file, group, first - self._starts[group])
        return functools.partial(_read, *place, self.keys(first, length), (self._image, *columns))


def _read(file: SourceFile, group: int, first: int, keys: list[str], columns: tuple[str, ...]) -> Iterator[Row]:
    try:
        table = _row_group(file, group, columns).slice(first, len(keys))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # Arrow's own complaints of the content have none
            raise
        for key in keys:
            yield Row(key, None, dict.fromkeys(columns[1:]), f"row group cannot be read: {one_line(error)}")
        return
    if len(table) != len(keys):
        raise ValueError(f"{file.path!r} has changed: {len(table)} rows instead of {len(keys)}")
    for key, values in zip(keys, table.to_pylist(), strict=True):
        yield image_row(key, values.pop(columns[0]), values, os.path.dirname(file.path))


@functools.lru_cache(2)
def _row_group(file: SourceFile, group: int, columns: tuple[str, ...]) -> pa.Table:
    with pq.ParquetFile(file.path) as parquet:
        return parquet.read_row_group(group, columns=list(columns))


def image_row(key: str, image: Any, columns: dict[str, Any], folder: str = "") -> Row:
    """Make a row of what a column of images holds: bytes, or a struct of ``bytes`` and ``path``, of which one may do.

    Args:
        key: of the row.
        image: the value.
        columns: values of the extra columns.
        folder: what a path is relative to.
    """
    image = image if isinstance(image, dict) else {"bytes": image}
    data, path, reason = image.get("bytes"), image.get("path"), None
    if data is None and path:
        ((_, data, _, reason),) = read_files([os.fsencode(os.path.join(folder, path))], [key])
    elif data is None:
        reason = "neither bytes nor a path"
    return Row(key, data, columns, reason)


def image_and_extra_columns(schema: Iterable[pa.Field], where: str) -> tuple[str, list[pa.Field]]:
    """Find the column of encoded images, ``image`` or the only one there is, and those that can be read along.

    Raises:
        ValueError: there is none, or there are several.
    """
    fields = [pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema]
    images = [field.name for field in fields if _is_image(field.type)]
    if not images:
        names = ", ".join(field.name for field in fields) or "nothing"
        raise ValueError(f"{where!r} has no column of encoded images, only {names}")
    if len(images) > 1 and images.count("image") != 1:
        raise ValueError(f"{where!r} has several image columns, {', '.join(images)}: call one of them 'image'")
    extra = [field for field in fields if field.name not in (*images, "image", "key")]
    return "image" if "image" in images else images[0], extra


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return any(is_kind(kind) for is_kind in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))
