"""Opening sources of each format; what is odd about them is in tests/contract/test_sources.py."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from gsqtok.data import check_outside, decode_pixels, open_source


def rows(source):
    return [row for span in source.spans() for row in source.rows(span)]


def check(source, expected_keys, images, **options):
    """The rows of a source, whose pixels are those of the images; returns the values of extra columns."""
    opened = open_source(source, **options)
    found = rows(opened)
    assert [row.key for row in found] == opened.all_keys() == expected_keys
    for row, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(decode_pixels(row.data), np.asarray(image))
    return [row.columns for row in found]


def test_folder_and_files(folder, noise):
    (folder / "sub dir").mkdir()
    (folder / "sub dir" / "ünï 图.png").write_bytes((folder / "03.png").read_bytes())
    keys = [f"{i:02d}.png" for i in range(10)] + ["sub dir/ünï 图.png"]
    check(folder, keys, [*map(noise, range(10)), noise(3)])
    check(folder / "04.png", ["04.png"], [noise(4)])
    check([folder / "04.png", str(folder / "02.png")], ["04.png", "02.png"], [noise(4), noise(2)])
    with pytest.raises(ValueError, match="listed twice"):
        open_source([folder, folder])
    with pytest.raises(ValueError, match="no source"):
        open_source([])


def test_ten_thousand_files_are_one_part(tmp_path):
    paths = [tmp_path / f"{i:05d}.png" for i in range(10_000)]
    for path in paths:
        path.touch()
    source = open_source(paths)
    assert len(source.parts) == 1
    assert source.all_keys() == [path.name for path in paths]
    assert [span.length for span in source.spans(4000)] == [4000, 4000, 2000]


def test_parquet_files_with_splits(tmp_path, write_parquet, encoded, noise):
    write_parquet(tmp_path / "train-0.parquet", [encoded(0), encoded(1)], label=[5, 6])
    write_parquet(tmp_path / "train-1.parquet", [encoded(2)], label=[7])
    write_parquet(tmp_path / "validation-0.parquet", [encoded(3)], label=[8])
    keys = ["train-0-000000", "train-0-000001", "train-1-000000", "validation-0-000000"]
    labels = check(tmp_path, keys[:3], map(noise, range(3)), split="train", columns=("label",))
    assert labels == [{"label": 5}, {"label": 6}, {"label": 7}]
    check(tmp_path, keys[3:], [noise(3)], split="validation")
    check(tmp_path, keys, map(noise, range(4)), split="all")
    check(f"{tmp_path}/train-*.parquet", keys[:3], map(noise, range(3)))
    with pytest.raises(ValueError, match="may be train, validation, all"):
        open_source(tmp_path)


def test_parquet_written_by_datasets(tmp_path, noise):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    columns = {"img": [noise(0), noise(1)], "label": ["dog", "cat"]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "a.parquet"))
    labels = check(tmp_path / "a.parquet", ["a-000000", "a-000001"], map(noise, range(2)), columns=("label",))
    assert labels == [{"label": 1}, {"label": 0}]


def test_parquet_files_of_unlike_columns(tmp_path, write_parquet, encoded, noise):
    write_parquet(tmp_path / "a.parquet", [encoded(0)], label=[1], caption=["x"], size=[8])
    write_parquet(tmp_path / "b.parquet", [encoded(1)], caption=["y"], label=[2.5])
    found = check(tmp_path, ["a-000000", "b-000000"], map(noise, range(2)), columns=("label", "caption"))
    assert found == [{"caption": "x"}, {"caption": "y"}]


def test_parquet_in_a_folder_named_like_a_pattern(tmp_path, write_parquet, encoded, noise):
    write_parquet(tmp_path / "a[0] b*" / "x?.parquet", [encoded(0)])
    check(tmp_path / "a[0] b*", ["x?-000000"], [noise(0)])


def test_a_changed_file_is_another_source(tmp_path, folder, write_parquet, write_tar, encoded, noise):
    def write(kind, numbers):
        if kind == "parquet":
            return write_parquet(tmp_path / "a.parquet", [encoded(i) for i in numbers])
        if kind == "tar":
            return write_tar(tmp_path / "a.tar", {f"{i}.png": encoded(i) for i in numbers})
        (folder / "04.png").write_bytes(encoded(numbers[-1], (9, 9)))
        return folder

    for kind in ("parquet", "tar", "folder"):
        before = open_source(write(kind, [0])).digest
        source = open_source(write(kind, [1, 2]))
        assert source.digest != before, kind
        assert open_source(write(kind, [1, 2])).digest != before
        assert [row.data for row in rows(source)][-1] == encoded([2, 9][kind == "folder"])


def test_parquet_that_changes_while_it_is_read(tmp_path, write_parquet, encoded):
    source = open_source(write_parquet(tmp_path / "a.parquet", [encoded(0), encoded(1)]))
    (span,) = source.spans()
    write_parquet(tmp_path / "a.parquet", [encoded(0)])
    with pytest.raises(ValueError, match=r"a\.parquet' has changed: 1 rows instead of 2"):
        list(source.rows(span))


def test_files_without_images(tmp_path, write_parquet, write_tar, encoded):
    write_parquet(tmp_path / "a.parquet", [])
    with pytest.raises(ValueError, match=r"hold no rows: .*a\.parquet"):
        open_source(tmp_path)
    write_parquet(tmp_path / "b.parquet", [encoded(0)])
    assert open_source(tmp_path).all_keys() == ["b-000000"]
    (tmp_path / "c.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match="not a readable parquet file") as error:
        open_source(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["folder", "parquet", "tar"])
def test_a_source_that_vanishes_is_an_error_and_no_heap_of_skipped_images(
    tmp_path, write_parquet, write_tar, encoded, kind
):
    root = tmp_path / "in"
    root.mkdir()
    if kind == "folder":
        for i in range(3):
            (root / f"{i}.png").write_bytes(encoded(i))
    elif kind == "parquet":
        write_parquet(root / "a.parquet", [encoded(0)])
    else:
        write_tar(root / "a.tar", {"0.png": encoded(0)})
    source = open_source(root)
    (span, *_) = source.spans(10)
    if kind == "folder":
        (root / "1.png").unlink()
        assert [row.reason for row in source.rows(span)] == [None, "cannot be read: No such file or directory", None]
    root.rename(tmp_path / "unmounted")
    with pytest.raises(FileNotFoundError):
        list(source.rows(span))


def test_pipes_and_sockets_are_no_files_of_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("a.tar")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("b.parquet")
        for name in ("a.tar", "b.parquet"):
            with pytest.raises(ValueError, match=f"{name}' is not a regular file"):
                open_source(name)


def test_output_inside_a_source_is_refused(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    for source in (folder, str(folder), [tmp_path / "other", folder], f"{folder}/**/*.png", tmp_path):
        for output in (folder, folder / "tokens", folder / "a" / "b", tmp_path / "link" / "tokens"):
            with pytest.raises(ValueError, match="lies in the source"):
                check_outside(source, output)
    for source, output in ((folder, f"{folder}-tokens"), (folder / "*.png", folder / "tokens"), ("owner/name", folder)):
        check_outside(source, output)


def test_import_is_cheap():
    code = "import sys, gsqtok.data; assert not {'datasets', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
