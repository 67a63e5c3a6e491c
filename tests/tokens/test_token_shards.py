"""What a shard takes on disk."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gsqtok.tokens.chunk import Chunk, Image
from gsqtok.tokens.shards import read_header, shard_schema, shard_table, write_shard


def chunks(codebook_size, images, shape):
    generator = np.random.default_rng(0)
    dtype = np.min_scalar_type(codebook_size - 1)
    for first in range(0, images, 500):
        keys = [f"n{i % 7:05d}/n{i % 7:05d}_{i:05d}.JPEG" for i in range(first, first + 500)]
        own = [Image(key, (375, 500), {"label": i % 7}) for i, key in enumerate(keys)]
        tokens = [((i, 0), generator.integers(0, codebook_size, shape).astype(dtype)) for i in range(500)]
        yield Chunk(0, first, own, [], tokens=tokens)


@pytest.mark.parametrize(
    ("codebook_size", "dtype"), [(2, "uint8"), (256, "uint8"), (8192, "uint16"), (65536, "uint16"), (2**18, "uint32")]
)
def test_tokens_take_their_bits_and_rows_few_bytes_more(tmp_path, codebook_size, dtype):
    schema = shard_schema(codebook_size, [pa.field("label", pa.int64())], {"some": "header"})
    table = pa.concat_tables(shard_table(chunk, schema) for chunk in chunks(codebook_size, 2000, (8, 8, 4)))
    assert str(table.schema.field("tokens").type.value_type) == dtype
    written = write_shard(table, tmp_path / "data/x.parquet")
    assert written["bytes"] == (tmp_path / "data/x.parquet").stat().st_size
    bytes_a_row = written["bytes"] / 2000
    assert bytes_a_row < 256 * np.dtype(dtype).itemsize * 1.1 + 64
    assert bytes_a_row < 256 * np.log2(codebook_size) / 8 * 1.1 + 64
    assert read_header(tmp_path / "data/x.parquet") == {"some": "header"}
    assert pq.read_table(tmp_path / "data/x.parquet").equals(table)


def test_rows_keep_their_tokens_when_the_encoder_reuses_its_memory():
    (chunk,) = chunks(256, 500, (4, 4, 2))
    before = np.stack([grid for _, grid in chunk.tokens])
    table = shard_table(chunk, shard_schema(256, [pa.field("label", pa.int64())], {}))
    for _, grid in chunk.tokens:
        grid[:] = 0
    assert np.array_equal(np.array(table["tokens"].to_pylist()).reshape(before.shape), before)


def test_a_column_with_a_name_of_ours_is_refused():
    with pytest.raises(ValueError, match="'grid' cannot be copied"):
        shard_schema(8, [pa.field("grid", pa.int64())], {})


def test_another_file_is_no_shard(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="not a shard of tokens"):
        read_header(tmp_path / "x.parquet")
