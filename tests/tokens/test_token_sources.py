"""Cutting sources into spans; tar shards."""

import os
from pathlib import Path

import pytest
from token_images import png, write_parquet, write_tar

from gsqtok.data import open_source
from gsqtok.tokens import tars
from gsqtok.tokens.plan import chunk_images, keys_digest, make_units
from gsqtok.tokens.sources import open_images


def everything(source, size=3):
    """All rows, span by span, and the promised keys."""
    rows, promised = [], []
    for span, keys in source.spans(size):
        own = list(source.chunk(span).rows())
        assert [row.key for row in own] == keys
        rows += own
        promised += keys
    assert len(set(promised)) == len(promised)
    return rows


@pytest.mark.parametrize("kind", ["tar", "tgz", "parquet", "folder"])
def test_the_rows_and_keys_of_open_source(tmp_path, kind, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in").mkdir()
    for part in range(2):
        named = [(f"{part}/{i}.png", png(10 * part + i)) for i in range(5)]
        if kind == "parquet":
            write_parquet(tmp_path / f"in/{part}.parquet", [data for _, data in named], label=list(range(5)))
        elif kind == "folder":
            (tmp_path / "in" / str(part)).mkdir()
            for name, data in named:
                (tmp_path / "in" / name).write_bytes(data)
        else:
            labels = [(name.replace("png", "cls"), str(i).encode()) for i, (name, _) in enumerate(named)]
            write_tar(tmp_path / f"in/{part}.{kind}", sorted(named + labels))
    rows = everything(open_images(tmp_path / "in", carry=("label",)))
    expected = open_source(tmp_path / "in")
    assert [row.key for row in rows] == expected["key"][:]
    for row, other in zip(rows, expected, strict=True):
        image = other["image"]
        assert row.data == (image["bytes"] or Path(image["path"]).read_bytes())
        assert row.columns.get("label") == other.get("label")


def test_names_twice_in_a_tar_shard(tmp_path):
    members = [("a.png", png(0)), ("a.png", png(1)), ("b.png", png(2)), ("a.png", png(3)), ("./a.jpg", png(4))]
    rows = everything(open_images(write_tar(tmp_path / "x.tar", members)), size=1)
    assert [row.key for row in rows] == ["x.tar/a.png", "x.tar/a.png#2", "x.tar/b.png", "x.tar/a.png#3", "x.tar/a.jpg"]
    assert [row.data for row in rows] == [data for _, data in members]


def test_long_and_unicode_names_in_a_tar_shard(tmp_path):
    members = [(f"{'ordner-猫' * 30}/{i}.png", png(i)) for i in range(5)]
    rows = everything(open_images(write_tar(tmp_path / "x.tar", members)), size=2)
    assert [(row.key, row.data) for row in rows] == [(f"x.tar/{name}", data) for name, data in members]


def test_names_that_are_no_utf8_in_a_tar_shard(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("aXb.png", png(0)), ("c.png", png(1))])
    data = bytearray(path.read_bytes())
    header = data[:512]
    header[1], header[148:156] = 0xE4, b" " * 8  # Latin-1, and the checksum anew
    header[148:156] = b"%06o\0 " % sum(header)
    data[:512] = header
    path.write_bytes(data)
    rows = everything(open_images(path))
    assert [(row.key, row.data) for row in rows] == [("x.tar/a\\xe4b.png", png(0)), ("x.tar/c.png", png(1))]


def test_names_that_are_no_utf8_in_a_folder(tmp_path):
    folder = os.fsencode(tmp_path)
    for name, number in ((b"caf\xe9.png", 0), (b"b.png", 1), (b"\xff/c.png", 2)):
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(png(number))
    rows = everything(open_images(tmp_path), size=2)
    assert {row.key: row.data for row in rows} == {"caf\\xe9.png": png(0), "b.png": png(1), "\\xff/c.png": png(2)}


def test_label_and_caption_belong_to_their_sample(tmp_path):
    members = [
        ("a.cls", b"3"),
        ("a.png", png(0)),
        ("b.png", png(1)),
        ("b.txt", "ein Hühnchen".encode()),
        ("c.png", png(2)),
    ]
    rows = everything(open_images(write_tar(tmp_path / "x.tar", members), carry=("label", "caption")), size=1)
    assert [row.columns for row in rows] == [
        {"label": 3, "caption": None},
        {"label": None, "caption": "ein Hühnchen"},
        {"label": None, "caption": None},
    ]


@pytest.mark.parametrize("cut", [1, 700, 5000])
@pytest.mark.parametrize("kind", ["tar", "tgz"])
def test_a_damaged_tar_shard_rejects_what_it_lost(tmp_path, cut, kind):
    path = write_tar(tmp_path / f"x.{kind}", [(f"{i}.png", png(i, (30, 30))) for i in range(8)])
    data = path.read_bytes()
    end = len(data) if kind == "tgz" else data.rindex(b"7.png") + 512 + len(png(7, (30, 30)))
    path.write_bytes(data[: end - cut])
    rows = everything(open_images(path))
    broken = [row.key for row in rows if row.error]
    whole = [row.key for row in rows if not row.error]
    assert whole == [f"x.{kind}/{i}.png" for i in range(len(whole))]
    assert all(row.data == png(i, (30, 30)) for i, row in enumerate(rows[: len(whole)]))
    assert 5 <= len(whole) <= 8 - (kind == "tar")
    if len(whole) == 8:  # no more than gzip's own last bytes are missing
        assert (kind, broken) == ("tgz", [])
        return
    assert "unreadable after" in broken[-1]
    assert broken[:-1] == [f"x.{kind}/{len(whole)}.png"] * (len(broken) - 1)
    assert len(broken) <= 2


def test_a_tar_shard_with_a_damaged_header(tmp_path):
    path = write_tar(tmp_path / "x.tar", [(f"{i}.png", png(i)) for i in range(8)])
    data = bytearray(path.read_bytes())
    place = data.index(b"5.png")
    data[place : place + 200] = b"x" * 200
    path.write_bytes(data)
    rows = everything(open_images(path))
    assert [row.key for row in rows if not row.error] == [f"x.tar/{i}.png" for i in range(5)]
    assert [row.key for row in rows if row.error] == ["x.tar/(unreadable after 4.png: damaged header)"]


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"img": [{"bytes": png(i), "path": None} for i in range(5)], "label": [0, 1, 0, 1, 1]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split, streaming: dataset)
    source = open_images(f"nobody/{tmp_path.name}", "train", carry=("label", "caption"))
    assert [str(field.type) for field in source.fields] == ["int64"]
    rows = everything(source, size=2)
    assert [(row.data, row.columns["label"]) for row in rows] == [(png(i), [0, 1, 0, 1, 1][i]) for i in range(5)]
    assert rows[3].key == "train-000003"


def test_empty_sources(tmp_path):
    with pytest.raises(ValueError, match="no image in the tar shards"):
        list(open_images(write_tar(tmp_path / "x.tar", [("a.txt", b"a")])).spans(2))
    with pytest.raises(ValueError, match="no rows"):
        open_images(write_parquet(tmp_path / "x.parquet", []))


def test_index_reads_whole_samples(tmp_path):
    members = [(f"{i}.{part}.png", png(i)) for i in range(4) for part in "lr"]
    pieces = list(tars.index(str(write_tar(tmp_path / "x.tar", members)), 3))
    assert [piece.names for piece in pieces] == [[f"{i}.l.png", f"{i}.r.png"] for i in range(4)]


def test_units_hold_at_most_a_shard(tmp_path):
    for part, length in enumerate((7, 1, 4)):
        write_parquet(tmp_path / f"{part}.parquet", [png(i) for i in range(length)])
    source = open_images(tmp_path)
    units = make_units(source, 5, 2)
    assert sum(unit.images for unit in units) == 12
    assert all(0 < unit.images <= 5 for unit in units)
    assert [unit.number for unit in units] == list(range(len(units)))
    for unit in units:
        keys = [row.key for span in unit.spans for row in source.chunk(span).rows()]
        assert keys_digest(keys[::-1]) == unit.keys


def test_chunks_hold_about_fifty_megabytes():
    assert chunk_images(256, 1, 8192) == 128
    assert chunk_images(128, 10, 8192) == 51
    assert chunk_images(1024, 1, 8192) == chunk_images(4096, 1, 8192) == 8
    assert chunk_images(64, 1, 8192) == 512
    assert chunk_images(64, 1, 10) == 10
