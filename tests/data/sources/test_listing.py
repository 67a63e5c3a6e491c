import logging
import os

import pytest

from gsqtok.data.sources.listing import distinct_names, find_files, may_be_on_hub


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def names(source, split=None):
    return [file.name for file in find_files(source, split)[1]]


def test_folder_is_sorted_nested_and_without_hidden_files(tmp_path):
    touch(tmp_path, "b.JPG", "a/ü 图.png", "a/z/1.webp", ".hidden.png", ".git/x.png", "a/._1.png", "a.b.tiff")
    kind, files = find_files(tmp_path)
    assert kind == "image"
    assert [file.name for file in files] == ["a.b.tiff", "a/z/1.webp", "a/ü 图.png", "b.JPG"]
    assert all(os.path.isfile(file.path) for file in files)


def test_other_files_are_counted_and_named(tmp_path, caplog):
    touch(tmp_path, "a.png", "labels.csv", "notes.txt", "README")
    with caplog.at_level(logging.WARNING, "gsqtok.data"):
        assert names(tmp_path) == ["a.png"]
    assert "left out 3 files that are not images: 'README', 'labels.csv', 'notes.txt'" in caplog.text


def test_parquet_and_tar_files_whose_paths_are_no_utf8(tmp_path):
    latin = os.path.join(os.fsencode(tmp_path), b"caf\xe9.tar")
    with open(latin, "wb"):
        pass
    with pytest.raises(ValueError, match="not UTF-8: rename"):
        find_files(tmp_path)


def test_links_to_folders(tmp_path, caplog):
    touch(tmp_path / "elsewhere", "1.png")
    touch(tmp_path / "root", "0.png")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "beside").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    with caplog.at_level(logging.WARNING, "gsqtok.data"):
        assert names(tmp_path / "root") == ["0.png", "beside/1.png", "link/1.png"]
    assert "root/loop, which leads back to a folder above it" in caplog.text


def test_missing_empty_and_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder '.*absent'"):
        find_files(tmp_path / "absent")
    with pytest.raises(ValueError, match="is empty"):
        find_files(tmp_path)
    touch(tmp_path, "a.txt", "b.txt")
    with pytest.raises(ValueError, match="no image, parquet file or tar shard among the 2 files"):
        find_files(tmp_path)
    with pytest.raises(ValueError, match="no image"):
        find_files(tmp_path / "a.txt")


def test_globs(tmp_path):
    touch(tmp_path, "x/a.png", "x/b.png", "y/c.png", "y/d.txt", "y/e/f.png")
    assert names(tmp_path / "x" / "*.png") == ["a.png", "b.png"]
    assert names(f"{tmp_path}/*/*.png") == ["x/a.png", "x/b.png", "y/c.png"]
    assert names(f"{tmp_path}/**/*.png") == ["x/a.png", "x/b.png", "y/c.png", "y/e/f.png"]
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*\*.jpg'"):
        find_files(f"{tmp_path}/*.jpg")


def test_braces(tmp_path):
    touch(tmp_path, *(f"s-{i:03d}.tar" for i in range(8, 12)), "t-a.tar", "t-b.tar", "u{1}.tar")
    assert names(f"{tmp_path}/s-{{009..011}}.tar") == ["s-009.tar", "s-010.tar", "s-011.tar"]
    assert names(f"{tmp_path}/{{t-{{a,b}},s-008}}.tar") == ["s-008.tar", "t-a.tar", "t-b.tar"]
    assert names(f"{tmp_path}/u{{1}}.tar") == ["u{1}.tar"]
    with pytest.raises(FileNotFoundError, match=r"s-012\.tar"):
        find_files(f"{tmp_path}/s-{{009..012}}.tar")


def test_splits(tmp_path):
    touch(tmp_path, "train-0.parquet", "train-1.parquet", "validation-0.parquet", "test.parquet")
    assert names(tmp_path, "train") == ["train-0.parquet", "train-1.parquet"]
    assert names(tmp_path, "val") == ["validation-0.parquet"]
    assert names(tmp_path, "test") == ["test.parquet"]
    assert len(names(tmp_path, "all")) == 4
    with pytest.raises(ValueError, match=r"name one with split .*--split.*, which may be test, train, validation, all"):
        find_files(tmp_path)
    with pytest.raises(ValueError, match="no file of the split 'extra'"):
        find_files(tmp_path, "extra")


def test_split_by_folder(tmp_path):
    touch(tmp_path, "train/cat/0.png", "train/val-1.png", "val/cat/2.png")
    assert names(tmp_path, "validation") == ["train/val-1.png", "val/cat/2.png"]
    assert names(tmp_path, "train") == ["train/cat/0.png", "train/val-1.png"]
    assert len(names(tmp_path)) == 3


def test_mixed_kinds(tmp_path):
    touch(tmp_path, "0.png", "1.png", "a.parquet")
    with pytest.raises(ValueError, match="2 image files, 1 parquet files"):
        find_files(tmp_path)
    assert names(f"{tmp_path}/*.png") == ["0.png", "1.png"]


def test_stamp_changes_with_the_file(tmp_path):
    touch(tmp_path, "a.tar")
    before = find_files(tmp_path)[1][0].stamp
    (tmp_path / "a.tar").write_bytes(b"longer")
    assert find_files(tmp_path)[1][0].stamp != before


def test_distinct_names():
    assert distinct_names(["/d/a", "/d/b"]) == ["a", "b"]
    assert distinct_names(["/x/train", "/y/train", "/y/val"]) == ["x/train", "y/train", "y/val"]
    with pytest.raises(ValueError, match="listed twice"):
        distinct_names(["/x/a", "/y/a", "/x/../x/a"])


def test_hub_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert may_be_on_hub("owner/name-1.0")
    for path in ("data/typo", "./owner", "../owner", "/owner/name", "a/b/c", "name", tmp_path, "owner/*"):
        assert not may_be_on_hub(path)
