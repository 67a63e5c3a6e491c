import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gsqtok.io import atomic_write, image_paths, json_values, read_bytes, save_image, sha256_of, write_bytes


def test_names_become_png():
    names = ["cat.jpg", "a/b/dog.JPEG", "größe 猫.webp", "no-suffix", "v1.2.png"]
    expected = ["cat.png", "a/b/dog.png", "größe 猫.png", "no-suffix.png", "v1.2.png"]
    assert image_paths("out", names) == {n: Path("out", e) for n, e in zip(names, expected, strict=True)}


def test_names_that_would_collide_stay_whole():
    paths = image_paths("out", ["a.jpg", "a.png", "b.png", "x/a.png"])
    expected = {"a.jpg": "a.jpg.png", "a.png": "a.png.png", "b.png": "b.png", "x/a.png": "x/a.png"}
    assert paths == {name: Path("out", path) for name, path in expected.items()}


def test_case_counts_as_a_collision():
    """Some disks know no difference between A and a."""
    assert image_paths("out", ["A.jpg", "a.webp"]) == {
        "A.jpg": Path("out/A.jpg.png"),
        "a.webp": Path("out/a.webp.png"),
    }


@pytest.mark.parametrize(
    "names", [["a.jpg", "a.png", "a.jpg.png"], ["a.jpg.webp", "a.jpg.png", "a.jpg", "a.webp"], ["a", "a.jpg", "a.png"]]
)
def test_every_image_has_a_path_of_its_own(names):
    for order in (names, names[::-1]):
        paths = image_paths("out", order)
        assert list(paths) == order
        assert len(set(paths.values())) == len(names)


@pytest.mark.parametrize(
    "names",
    [
        ["cat.jpg", "cat.png/x.jpg"],
        ["cat.jpg", "CAT.png/x.jpg", "cat.jpg.png/y/z.jpg"],
        ["a.png", "./a.png", "././a.png", "a//b.png", "a/b.png"],
        [f"{'x' * 246}.jpg", f"{'x' * 246}.webp", f"{'x' * 251}", f"{'x' * 255}", f"{'x' * 254}y"],
        [f"{'é' * 127}/{'猫' * 85}", f"{'é' * 200}/a.png", f"{'é' * 201}/a.png"],
    ],
)
def test_images_of_clashing_and_long_names_can_all_be_saved(names, tmp_path):
    paths = image_paths(tmp_path, names)
    for number, path in enumerate(paths.values()):
        save_image(Image.new("RGB", (1, 1), (number, 0, 0)), path)
    assert [Image.open(path).getpixel((0, 0))[0] for path in paths.values()] == list(range(len(names)))
    assert len({str(path).casefold() for path in paths.values()}) == len(names)


@pytest.mark.parametrize(
    "name",
    [
        "../x.png",
        "a/../../x.png",
        "/etc/x.png",
        "..",
        "",
        ".",
        "a\0b.png",
        "..\\x.png",
        "\\\\host\\x",
        "C:\\x.png",
        "C:x",
    ],
)
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(ValueError, match="points outside the output folder"):
        image_paths("out", ["fine.png", name])


def test_a_name_with_a_colon_is_a_name():
    assert image_paths("out", ["12:30.jpg"]) == {"12:30.jpg": Path("out/12:30.png")}


def test_a_saved_image_is_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "new" / "folder" / "a.png"
    save_image(Image.fromarray(pixels), path)
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
    assert os.listdir(path.parent) == ["a.png"]


def test_a_image_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full(self, file, format):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_image(Image.new("RGB", (2, 2)), path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_file_with_the_longest_name_is_written_and_what_was_left_is_removed(tmp_path):
    path = tmp_path / ("n" * 255)
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        left = temporary.with_name(temporary.name.replace(str(os.getpid()), "1"))
        left.write_bytes(b"of a killed process")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, left.name])
    write_bytes(path, b"new")
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == b"new"


def test_only_regular_files_of_a_bearable_size_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    assert read_bytes(tmp_path / "link") == read_bytes(str(tmp_path / "a")) == b"abc"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file"):
            read_bytes(path)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**31)  # takes no place on the disk
    with pytest.raises(OSError, match="2 GiB or larger"):
        read_bytes(tmp_path / "huge")


def test_json_values():
    values = {1: (1.5, math.nan), "a": {"b": [-math.inf, True, None, 2]}}
    assert json_values(values) == {"1": [1.5, None], "a": {"b": [None, True, None, 2]}}
    json.dumps(json_values(values), allow_nan=False)


def test_equals_the_digest_of_the_whole(tmp_path):
    for data in (b"", b"gsqtok", bytes(range(256)) * 9000):  # the last takes several blocks
        (tmp_path / "file").write_bytes(data)
        assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()
