"""Units of work."""

import pytest
from token_images import png, write_parquet, write_tar

from gsqtok.data import open_source
from gsqtok.tokens.plan import chunk_images, keys_digest, make_units


def test_units_hold_at_most_a_shard(tmp_path):
    for part, length in enumerate((7, 1, 4)):
        write_parquet(tmp_path / f"{part}.parquet", [png(i) for i in range(length)])
    source = open_source(tmp_path)
    units = make_units(source, 5, 2)
    assert sum(unit.images for unit in units) == 12
    assert all(0 < unit.images <= 5 for unit in units)
    assert [unit.number for unit in units] == list(range(len(units)))
    for unit in units:
        keys = [row.key for span in unit.spans for row in source.rows(span)]
        assert keys_digest(keys[::-1]) == unit.keys


def test_no_units_of_no_images(tmp_path):
    with pytest.raises(ValueError, match="the source holds no image"):
        make_units(open_source(write_tar(tmp_path / "x.tar", [("a.txt", b"a")])), 5, 2)


def test_chunks_hold_about_fifty_megabytes():
    assert chunk_images(256, 1, 8192) == 128
    assert chunk_images(128, 10, 8192) == 51
    assert chunk_images(1024, 1, 8192) == chunk_images(4096, 1, 8192) == 8
    assert chunk_images(64, 1, 8192) == 512
    assert chunk_images(64, 1, 10) == 10
