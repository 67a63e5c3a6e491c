import pickle
from itertools import islice

import numpy as np
import pytest

from gsqtok.data import CropMix, DecodedImages, ImageTransform, open_source, train_loader
from gsqtok.data import decoded as module

SCALES = (1, 1.5, 2)
MIX = CropMix(
    (ImageTransform(4, "random", scales=SCALES), ImageTransform(8, "random", flip=True, max_resize=11)), (0.5, 0.5), 8
)


@pytest.fixture
def source(folder, encoded):
    """Images of several sizes, of which two cannot be read."""
    for i in range(3, 10):
        (folder / f"{i:02d}.png").write_bytes(encoded(i, (8 + i, 20 - i)))
    (folder / "04.png").write_bytes(b"")
    (folder / "09.png").write_text("no image")
    return open_source(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_are_those_of_images_decoded_each_time(source, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 3)
    decoded = DecodedImages(source, tmp_path / "decoded", scales=SCALES, workers=workers)
    options = {"batch_size": 4, "seed": 3, "workers": workers}
    plain, kept = (list(islice(train_loader(images, MIX, **options), 12)) for images in (source, decoded))
    assert {pair for batch in plain for pair in batch["skipped"]} == {
        ("04.png", "zero bytes"),
        ("09.png", "not an image of a known format"),
    }
    for one, other in zip(kept, plain, strict=True):
        assert one["keys"] == other["keys"]
        assert one["skipped"] == other["skipped"]
        assert np.array_equal(one["image"], other["image"])


def test_images_are_decoded_once(source, folder, tmp_path, monkeypatch, encoded):
    decoded = DecodedImages(source, tmp_path / "decoded", scales=SCALES)
    expected = decoded.take([0])[0].images()
    assert [image.shape for image in expected] == [(8, 8, 3), (5, 5, 3), (4, 4, 3)]

    def refuse(*_):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patched:
        patched.setattr(module, "decode_row", refuse)
        again = pickle.loads(pickle.dumps(DecodedImages(open_source(folder), tmp_path / "decoded", scales=(2, 1.5))))
        for one, other in zip(again.take([0])[0].images(), expected, strict=True):
            assert np.array_equal(one, other)
    (folder / "00.png").write_bytes(encoded(0, (10, 10)))  # another source
    assert DecodedImages(open_source(folder), tmp_path / "decoded").take([0])[0].images()[0].shape == (10, 10, 3)


def test_what_was_cut_short_is_decoded_anew(source, tmp_path, monkeypatch):
    class Full(Exception):
        pass

    def full(*_):
        raise Full

    with monkeypatch.context() as patched:
        patched.setattr(module, "_copies", full)
        with pytest.raises(Full):
            DecodedImages(source, tmp_path / "decoded")
    assert len(DecodedImages(source, tmp_path / "decoded")) == 10


def test_no_image(tmp_path, write_tar):
    source = open_source(write_tar(tmp_path / "s.tar", {"a.txt": b"x"}))
    with pytest.raises(ValueError, match="the source holds no image"):
        DecodedImages(source, tmp_path / "decoded")
