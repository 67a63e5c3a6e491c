"""A shard memory-mapped: parquet is compressed, so each shard is unpacked once, to an Arrow file beside others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor

from gsqtok.io import atomic_write
from gsqtok.tokens.layout import COUNTS, restored


def cache_folder(fingerprint: str) -> Path:
    """Where unpacked shards of a data set lie by default: $GSQTOK_CACHE, or a folder below HF_HOME."""
    root = os.environ.get("GSQTOK_CACHE") or os.path.join(HF_HOME, "gsqtok", "tokens")
    return Path(root) / fingerprint[:16]


class MappedShard:
    """Rows of one shard, read from the mapped file without a copy.

    Args:
        path: of the parquet file.
        cache: folder of the unpacked file; it is made where it is missing, whole or not at all, so that many processes
            may do so at once.
        sha256: of the parquet file: its unpacked name, so that a shard that was written anew is unpacked anew.
        rows: that the shard must have.

    Raises:
        ValueError: the shard has another number of rows.
        OSError: it cannot be read, or the disk is full.
    """

    def __init__(self, path: Path, cache: Path, sha256: str, rows: int) -> None:
        unpacked = cache / f"{sha256[:32]}.arrow"
        if not unpacked.exists():
            _unpack(path, unpacked)
        self.batch = pa.ipc.open_file(pa.memory_map(str(unpacked))).get_batch(0)
        if self.batch.num_rows != rows:
            raise ValueError(f"{path} has {self.batch.num_rows} rows, the manifest says {rows}")
        tokens = self.batch.column("tokens")
        self._offsets = np.frombuffer(tokens.buffers()[1], np.int32)
        self._tokens = tokens.values.to_numpy()
        self._columns: dict[str, np.ndarray | pa.Array] = {}
        self._grids = self.batch.column("grid").flatten().to_numpy().reshape(-1, 3)

    def grid(self, row: int) -> np.ndarray:
        """Tokens (h, w, G) of a row, in their stored type, a read-only view of the file; or int64 with -1 in them."""
        tokens = self._tokens[self._offsets[row] : self._offsets[row + 1]]
        counts = self.counts(row)
        if counts is None:
            return tokens.reshape(self._grids[row])
        return restored(torch.tensor(tokens.astype(np.int64)), counts, int(self._grids[row][2])).numpy()

    def counts(self, row: int) -> Tensor | None:
        """Groups of each position of a row, (h, w) int64; None where all positions have all."""
        if COUNTS not in self.batch.schema.names:
            return None
        values = self.batch.column(COUNTS)[row].values.to_numpy().astype(np.int64)
        return torch.from_numpy(values.reshape(self._grids[row][:2]))

    def value(self, column: str, row: int) -> Any:
        """A value of another column, as Python has it."""
        values = self._column(column)
        value = values[row]
        return value.as_py() if isinstance(value, pa.Scalar) else value.item()

    def _column(self, name: str) -> np.ndarray | pa.Array:
        if name not in self._columns:
            column = self.batch.column(name)
            plain = pa.types.is_integer(column.type) and not column.null_count
            self._columns[name] = column.to_numpy() if plain else column
        return self._columns[name]


def _unpack(path: Path, target: Path) -> None:
    """One record batch, whose columns are contiguous in the file."""
    table = pq.read_table(path, memory_map=True).combine_chunks()
    with (
        atomic_write(target) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_batch(table.to_batches()[0])
