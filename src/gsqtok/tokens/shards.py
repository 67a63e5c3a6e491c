"""One shard: a parquet file of token rows, which says in its metadata what made it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gsqtok.io import write_bytes
from gsqtok.tokens.chunk import Chunk
from gsqtok.tokens.layout import COUNTS, kept

META = b"gsqtok"  # the key of the schema's metadata, whose value is JSON
DATA = "data"  # the folder of the shards
COLUMNS = ("key", "crop", "tokens", "grid", "size")
_ROW_GROUP = 1024
_VALUES = 1 << 16  # of a column handled at once: a fifth faster than Arrow's default


def shard_name(number: int, count: int) -> str:
    """Path of a shard below the data set's folder."""
    return f"{DATA}/tokens-{number:05d}-of-{count:05d}.parquet"


def shard_schema(codebook_size: int, fields: Sequence[pa.Field], header: dict[str, Any]) -> pa.Schema:
    """Columns and metadata of a shard.

    ``key`` names the image, ``crop`` numbers its crops, ``tokens`` is the grid (h, w, G) flattened in that order, in
    the smallest unsigned type that holds V - 1, ``grid`` is (h, w, G), ``size`` the image's (height, width) in
    pixels; then the extra columns. Where positions keep groups of their own number (``allocation`` in the header),
    ``tokens`` are those that are kept, and ``counts`` has the numbers of all positions.
    """
    token = pa.from_numpy_dtype(np.min_scalar_type(codebook_size - 1))
    own = [
        pa.field("key", pa.string()),
        pa.field("crop", pa.uint8()),
        pa.field("tokens", pa.list_(token)),
        pa.field("grid", pa.list_(pa.int32(), 3)),
        pa.field("size", pa.list_(pa.int32(), 2)),
    ]
    if "allocation" in header:
        own.append(pa.field(COUNTS, pa.list_(pa.uint8())))
    if taken := [field.name for field in fields if field.name in (*COLUMNS, COUNTS)]:
        raise ValueError(f"the source's column '{taken[0]}' cannot be copied: token rows have one of that name")
    return pa.schema([*own, *fields], metadata={META: json.dumps(header, sort_keys=True).encode()})


def shard_table(chunk: Chunk, schema: pa.Schema) -> pa.Table:
    """The rows of an encoded chunk, in order; tokens are copied."""
    rows = [(chunk.images[image], crop, grid) for (image, crop), grid in chunk.tokens]
    grids = [grid for _, _, grid in rows]
    parts = [kept(grid) if COUNTS in schema.names else (grid.ravel(), grid.ravel()) for grid in grids]
    token = schema.field("tokens").type.value_type
    columns = {
        "key": pa.array([image.key for image, _, _ in rows], pa.string()),
        "crop": pa.array([crop for _, crop, _ in rows], pa.uint8()),
        "tokens": _lists([tokens for tokens, _ in parts], token),
        "grid": _pairs([grid.shape for grid in grids], 3),
        "size": _pairs([image.size for image, _, _ in rows], 2),
    }
    if COUNTS in schema.names:
        columns[COUNTS] = _lists([counts for _, counts in parts], pa.uint8())
    for field in schema:
        if field.name not in columns:
            columns[field.name] = pa.array([image.columns[field.name] for image, _, _ in rows], field.type)
    return pa.table(columns, schema=schema)


def _lists(parts: list[np.ndarray], of: pa.DataType) -> pa.ListArray:
    offsets = np.cumsum([0] + [len(part) for part in parts])
    flat = np.concatenate(parts) if parts else np.empty(0, of.to_pandas_dtype())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat, of))


def _pairs(values: list[tuple[int, ...]], length: int) -> pa.Array:
    flat = np.array(values, np.int32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.int32()), length)


def write_shard(table: pa.Table, path: Path) -> dict[str, Any]:
    """Write a shard, whole or not at all, and return its hash and size in bytes.

    Parquet knows no integers under 32 bits, so tokens are split into their byte planes and compressed: what is left is
    log2(V) bits a token.
    """
    buffer = pa.BufferOutputStream()  # Python's own would stop other threads at every write
    pq.write_table(
        table,
        buffer,
        row_group_size=_ROW_GROUP,
        write_batch_size=_VALUES,
        compression="zstd",
        use_dictionary=[name for name in _leaves(table.schema) if not name.startswith(("key", "tokens"))],
        column_encoding={"tokens.list.element": "BYTE_STREAM_SPLIT"},
    )
    data = memoryview(buffer.getvalue())
    write_bytes(path, data)
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def read_header(path: Path) -> dict[str, Any]:
    """What made a shard.

    Raises:
        ValueError: not a shard written by gsqtok.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata[META])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a shard of tokens written by gsqtok ({error})") from error


def _leaves(schema: pa.Schema) -> list[str]:
    """Names of parquet's columns: of a nested field, its innermost."""
    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty)
    parquet = pq.ParquetFile(empty).schema
    return [parquet.column(i).path for i in range(len(parquet))]
