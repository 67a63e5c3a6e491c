import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from gsqtok.tokens.crops import Crops


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def equal(crops, expected):
    assert len(crops) == len(expected)
    for crop, other in zip(crops, expected, strict=True):
        np.testing.assert_array_equal(crop, np.asarray(other))


@pytest.mark.parametrize("size", [16, 21, 64])
def test_ten_crops_are_torchvisions(image, size):
    resized = v2.Resize(round(1.1 * size), v2.InterpolationMode.BICUBIC, antialias=True)(image)
    equal(Crops(size, "ten")(image), v2.TenCrop(size)(resized))


@pytest.mark.parametrize("size", [16, 21])
def test_centre_and_its_mirror_image(image, size):
    resized = v2.Resize(size + 3, v2.InterpolationMode.BICUBIC, antialias=True)(image)
    centre = v2.CenterCrop(size)(resized)
    equal(Crops(size, resize=size + 3, flip=True)(image), [centre, v2.functional.horizontal_flip(centre)])


def test_whole_images(image):
    equal(Crops(None, "none")(image), [image])
    (crop,) = Crops(20, "none")(image)
    assert crop.shape == (20, 32, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"crop": "middle"},
        {"size": None},
        {"size": 8, "crop": "none", "resize": 9},
        {"size": 8, "resize": 7},
        {"size": 8, "crop": "ten", "flip": True},
        {"size": 0},
    ],
)
def test_wrong_options(options):
    with pytest.raises(ValueError):
        Crops(**options)
