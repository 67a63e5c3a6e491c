import logging
import tarfile

import numpy as np
import pytest

from gsqtok.data import decode_image, open_source


def table(dataset):
    """Rows with the image decoded, so that files and embedded bytes compare."""
    return [{**row, "image": np.asarray(decode_image(row["image"])).tobytes()} for row in dataset]


def check(source, expected_keys, images, **options):
    """The same rows streaming or not; returns them."""
    whole = open_source(source, **options)
    streamed = open_source(source, streaming=True, **options)
    rows = table(whole)
    assert [row["key"] for row in rows] == expected_keys
    assert [row["image"] for row in rows] == [np.asarray(image).tobytes() for image in images]
    assert table(streamed) == rows
    assert whole.column_names[:2] == ["image", "key"]
    assert streamed.features == whole.features
    return rows


def test_folder(folder, noise, caplog):
    (folder / "sub dir").mkdir()
    (folder / "sub dir" / "ünï 图.png").write_bytes((folder / "03.png").read_bytes())
    (folder / "notes.txt").write_text("x")
    with caplog.at_level(logging.WARNING, "gsqtok.data"):
        keys = [f"{i:02d}.png" for i in range(10)] + ["sub dir/ünï 图.png"]
        check(folder, keys, [*map(noise, range(10)), noise(3)])
    assert "left out 1 files" in caplog.text


def test_single_file_and_many(folder, noise):
    check(folder / "04.png", ["04.png"], [noise(4)])
    check([folder / "04.png", str(folder / "02.png")], ["04.png", "02.png"], [noise(4), noise(2)])


def test_ten_thousand_files_are_one_listing(tmp_path):
    paths = [tmp_path / f"{i:05d}.png" for i in range(10_000)]
    for path in paths:
        path.touch()
    dataset = open_source(paths)
    assert dataset.column_names == ["image", "key"]
    assert dataset[9_999]["key"] == "09999.png"
    assert dataset.data.column("key").num_chunks == 1


def test_parquet_file(tmp_path, write_parquet, encoded, noise):
    path = write_parquet(tmp_path / "some.parquet", [encoded(i) for i in range(7)], label=list(range(7)))
    rows = check(path, [f"some-{i:06d}" for i in range(7)], map(noise, range(7)))
    assert [row["label"] for row in rows] == list(range(7))


def test_parquet_folder_with_splits(tmp_path, write_parquet, encoded, noise):
    write_parquet(tmp_path / "train-0.parquet", [encoded(0), encoded(1)], label=[5, 6])
    write_parquet(tmp_path / "train-1.parquet", [encoded(2)], label=[7])
    write_parquet(tmp_path / "validation-0.parquet", [encoded(3)], label=[8])
    keys = ["train-0-000000", "train-0-000001", "train-1-000000", "validation-0-000000"]
    check(tmp_path, keys[:3], map(noise, range(3)), split="train")
    check(tmp_path, keys[3:], [noise(3)], split="validation")
    check(tmp_path, keys, map(noise, range(4)), split="all")
    check(f"{tmp_path}/train-*.parquet", keys[:3], map(noise, range(3)))
    with pytest.raises(ValueError, match="splits train, validation"):
        open_source(tmp_path)


def test_parquet_of_plain_bytes_under_another_name(tmp_path, write_parquet, encoded, noise):
    path = write_parquet(tmp_path / "a.parquet", [encoded(0), encoded(1)], column="png", plain=True, key=["x", "y"])
    rows = check(path, ["a-000000", "a-000001"], map(noise, range(2)))
    assert set(rows[0]) == {"image", "key"}


def test_parquet_written_by_datasets(tmp_path, noise):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    columns = {"img": [noise(0), noise(1)], "label": ["dog", "cat"]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "a.parquet"))
    rows = check(tmp_path / "a.parquet", ["a-000000", "a-000001"], map(noise, range(2)))
    assert [row["label"] for row in rows] == [1, 0]
    assert open_source(tmp_path / "a.parquet").features["label"].names == ["cat", "dog"]


def test_parquet_files_of_unlike_columns(tmp_path, write_parquet, encoded, noise):
    write_parquet(tmp_path / "a.parquet", [encoded(0)], label=[1], caption=["x"], size=[8])
    write_parquet(tmp_path / "b.parquet", [encoded(1)], caption=["y"], label=[2.5])
    rows = check(tmp_path, ["a-000000", "b-000000"], map(noise, range(2)))
    assert [row["caption"] for row in rows] == ["x", "y"]
    assert set(rows[0]) == {"image", "key", "caption"}


def test_parquet_in_a_folder_named_like_a_pattern(tmp_path, write_parquet, encoded, noise):
    folder = tmp_path / "a[0] b*"
    write_parquet(folder / "x?.parquet", [encoded(0)])
    check(folder, ["x?-000000"], [noise(0)])


def test_parquet_changes_on_disk(tmp_path, write_parquet, encoded, noise):
    path = write_parquet(tmp_path / "a.parquet", [encoded(0)])
    check(path, ["a-000000"], [noise(0)])
    write_parquet(path, [encoded(1), encoded(2)])
    check(path, ["a-000000", "a-000001"], [noise(1), noise(2)])


def test_parquet_without_or_with_two_image_columns(tmp_path, write_parquet, encoded):
    import pyarrow as pa

    two = write_parquet(tmp_path / "two.parquet", [encoded(0)], column="left", right=pa.array([b"x"]))
    with pytest.raises(ValueError, match="several image columns, left, right"):
        open_source(two)
    none = write_parquet(tmp_path / "none.parquet", [encoded(0)], column="caption", plain=True)
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"caption": ["a"], "image": ["a.png"]}), none)
    with pytest.raises(ValueError, match="no column of encoded images, only caption, image"):
        open_source(none)


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_without_rows(tmp_path, write_parquet, encoded, streaming):
    write_parquet(tmp_path / "a.parquet", [])
    with pytest.raises(ValueError, match=r"hold no rows: .*a\.parquet"):
        open_source(tmp_path, streaming=streaming)
    write_parquet(tmp_path / "b.parquet", [encoded(0)])
    assert [row["key"] for row in open_source(tmp_path, streaming=streaming)] == ["b-000000"]


def test_tar_without_images(tmp_path, write_tar):
    with pytest.raises(ValueError, match="no image in the tar shards"):
        open_source(write_tar(tmp_path / "a.tar", {"a.txt": b"x"}))


def test_broken_parquet_file(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match="not a readable parquet file") as error:
        open_source(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_tar_shards(tmp_path, write_tar, encoded, noise, suffix):
    write_tar(
        tmp_path / f"s-0{suffix}",
        {"a/0.png": encoded(0), "a/0.cls": b"3\n", "a/0.txt": "ein Bild ä".encode(), "a/0.json": b"{}"},
    )
    write_tar(
        tmp_path / f"s-1{suffix}",
        {"./1.cls": b"x", "./1.left.png": encoded(1), "./1.right.png": encoded(2), "2.PNG": encoded(3), ".x.png": b""},
    )
    members = ["s-0{}/a/0.png", "s-1{}/1.left.png", "s-1{}/1.right.png", "s-1{}/2.PNG"]
    keys = [member.format(suffix) for member in members]
    rows = check(tmp_path, keys, map(noise, range(4)))
    assert [(row["label"], row["caption"]) for row in rows] == [(3, "ein Bild ä"), *[(None, None)] * 3]
    check(f"{tmp_path}/s-{{0..1}}{suffix}", keys, map(noise, range(4)))


def test_tar_changes_on_disk(tmp_path, write_tar, encoded, noise):
    write_tar(tmp_path / "s.tar", {"0.png": encoded(0)})
    check(tmp_path, ["s.tar/0.png"], [noise(0)])
    write_tar(tmp_path / "s.tar", {"0.png": encoded(1), "1.png": encoded(2)})
    check(tmp_path, ["s.tar/0.png", "s.tar/1.png"], [noise(1), noise(2)])


@pytest.mark.parametrize("damage", ["cut inside a member", "cut inside a header", "damaged header", "no tar", "empty"])
def test_damaged_tar(tmp_path, write_tar, encoded, damage):
    path = write_tar(tmp_path / "s.tar", {f"{i}.png": encoded(i, (40, 40)) for i in range(3)})
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2]
    data = bytearray(path.read_bytes())
    if damage == "cut inside a member":
        data = data[: third.offset_data + 700]
    elif damage == "cut inside a header":
        data = data[: third.offset + 100]
    elif damage == "damaged header":
        data[third.offset + 150] ^= 0xFF
    else:
        data = b"not a tar file at all" * (damage == "no tar")
    path.write_bytes(bytes(data))
    write_tar(tmp_path / "t.tar", {"9.png": encoded(9)})
    readable = [] if damage in ("no tar", "empty") else ["s.tar/0.png", "s.tar/1.png"]
    for streaming in (False, True, False):  # the second time from the cache
        keys = [row["key"] for row in open_source(tmp_path, streaming=streaming)]
        assert keys[:-2] == readable
        assert keys[-2].startswith(f"s.tar/(unreadable after {'1.png' if readable else 'the start'}")
        assert keys[-1] == "t.tar/9.png"


def test_several_sources(tmp_path, folder, write_parquet, write_tar, encoded, noise):
    parquet = write_parquet(tmp_path / "x" / "same.parquet", [encoded(20)], label=[1])
    other = write_parquet(tmp_path / "y" / "same.parquet", [encoded(21)], label=[2])
    tar = write_tar(tmp_path / "y" / "t.tar", {"0.png": encoded(22), "0.cls": b"3"})
    rows = check(
        [parquet, other, tar], ["x/same-000000", "y/same-000000", "y/t.tar/0.png"], [noise(i) for i in (20, 21, 22)]
    )
    assert [row["label"] for row in rows] == [1, 2, 3]
    keys = [f"images/{i:02d}.png" for i in range(10)]
    rows = check([folder, parquet], [*keys, "same-000000"], [*map(noise, range(10)), noise(20)])
    assert set(rows[0]) == {"image", "key"}
    with pytest.raises(ValueError, match="listed twice"):
        open_source([folder, folder])
    with pytest.raises(ValueError, match="no source"):
        open_source([])


@pytest.fixture
def hub(monkeypatch, noise):
    """A stand-in for the network: data sets as ``load_dataset`` returns them."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    train = datasets.Dataset.from_dict({"img": list(map(noise, range(5))), "label": [0, 1, 0, 1, 0]}, features=features)
    splits = {"train": train, "test": train.select([4])}

    def load(name, split=None, streaming=False):
        if name == "owner/absent":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/absent' doesn't exist\non the Hub")
        if name == "owner/offline":
            raise ConnectionError("Couldn't reach the Hub")
        if split not in (None, *splits):
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
        chosen = {k: v.to_iterable_dataset(num_shards=min(2, len(v))) if streaming else v for k, v in splits.items()}
        if name == "owner/single":
            chosen.pop("test")
        return chosen[split] if split else datasets.DatasetDict(chosen)

    monkeypatch.setattr(datasets, "load_dataset", load)


def test_hub(hub, noise):
    whole = open_source("owner/name", split="train")
    streamed = open_source("owner/name", split="train", streaming=True)
    rows, streamed_rows = table(whole), table(streamed)
    assert [row["key"] for row in rows] == [f"train-{i:06d}" for i in range(5)]
    assert [row["key"] for row in streamed_rows][:4] == [
        "train-00000-000000",
        "train-00000-000001",
        "train-00000-000002",
        "train-00001-000000",
    ]
    assert [row["image"] for row in rows] == [np.asarray(noise(i)).tobytes() for i in range(5)]
    assert [{**row, "key": 0} for row in rows] == [{**row, "key": 0} for row in streamed_rows]
    assert [row["label"] for row in rows] == [0, 1, 0, 1, 0]
    assert len(open_source("owner/single")) == 5


def test_hub_beside_a_folder(hub, folder):
    keys = [row["key"] for row in open_source(["owner/single", folder])]
    assert keys[:1] == ["single/train-000000"]
    assert keys[-1:] == ["images/09.png"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "owner/absent",
            FileNotFoundError,
            "no file or folder 'owner/absent' here, and no hub data set 'owner/absent'",
        ),
        ("owner/offline", FileNotFoundError, "Couldn't reach the Hub"),
        ("owner/name", ValueError, "has the splits train, test: name one"),
    ],
)
def test_hub_errors(hub, name, error, message):
    with pytest.raises(error, match=message) as caught:
        open_source(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="Unknown split"):
        open_source("owner/name", split="dev")


def test_import_is_cheap():
    import subprocess
    import sys

    code = "import sys, gsqtok.data; assert not {'datasets', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
