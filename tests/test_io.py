import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gsqtok.io import image_paths, json_values, save_image


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


def test_json_values():
    values = {1: (1.5, math.nan), "a": {"b": [-math.inf, True, None, 2]}}
    assert json_values(values) == {"1": [1.5, None], "a": {"b": [None, True, None, 2]}}
    json.dumps(json_values(values), allow_nan=False)
