import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gsqtok.data import BrokenImageError, ImageTransform, load_image, to_pil, to_tensor


def test_range_and_round_trip():
    ramp = Image.fromarray(np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3))
    tensor = to_tensor(ramp)
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert (tensor.min().item(), tensor.max().item()) == (-1, 1)
    np.testing.assert_array_equal(np.asarray(to_pil(tensor)), np.asarray(ramp))


def test_to_tensor_matches_torchvision(noise):
    functional = pytest.importorskip("torchvision.transforms.functional")
    expected = functional.to_tensor(noise(1)) * 2 - 1
    torch.testing.assert_close(to_tensor(noise(1)), expected, atol=1e-6, rtol=0)


def test_to_tensor_of_a_batch(noise):
    batch = np.stack([np.asarray(noise(i)) for i in range(3)])
    tensor = to_tensor(batch)
    assert tensor.is_contiguous()
    torch.testing.assert_close(tensor, torch.stack([to_tensor(noise(i)) for i in range(3)]))


def test_to_pil_rounds_and_clamps():
    values = torch.tensor([-7.0, -1 + 0.6 / 127.5, 9.0])
    assert np.asarray(to_pil(values.view(3, 1, 1)))[0, 0].tolist() == [0, 1, 255]
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        to_pil(torch.zeros(1, 3, 4, 4))


def test_input_is_not_changed(noise):
    image = noise(1)
    before = np.asarray(image).copy()
    ImageTransform(None, "none")(image).zero_()
    np.testing.assert_array_equal(np.asarray(image), before)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.sampled_from(["bicubic", "lanczos"]))
def test_center_crop_equals_torchvision(noise, width, height, size, resample):
    tv = pytest.importorskip("torchvision.transforms.v2")
    resize = tv.Resize(size, interpolation=tv.InterpolationMode(resample))
    whole = resize(noise(1, (width, height)))
    transform = ImageTransform(size, "none", resample=resample)
    np.testing.assert_array_equal(transform.pixels(noise(1, (width, height))), np.asarray(whole))
    transform = ImageTransform(size, "center", resample=resample)
    np.testing.assert_array_equal(transform.pixels(noise(1, (width, height))), np.asarray(tv.CenterCrop(size)(whole)))


def test_crop_none_keeps_the_aspect(noise):
    assert ImageTransform(32, "none")(noise(1, (100, 50))).shape == (3, 32, 64)
    assert ImageTransform(32, "none")(noise(1, (10, 25))).shape == (3, 80, 32)
    assert ImageTransform(None, "none")(noise(1, (11, 25))).shape == (3, 25, 11)


def test_same_size_is_untouched(noise):
    np.testing.assert_array_equal(ImageTransform(8, "center").pixels(noise(1)), np.asarray(noise(1)))


@pytest.mark.parametrize(
    "options", [{"size": 16}, {"size": 12}, {"size": 12, "fast": True}, {"size": 8, "crop": "none"}]
)
def test_an_array_gives_the_pixels_of_the_image(noise, options):
    transform = ImageTransform(**options)
    assert np.array_equal(transform.pixels(np.asarray(noise(1))), transform.pixels(noise(1)))


def test_random_crop_reaches_every_offset(noise):
    image = noise(1, (11, 8))
    rng = np.random.default_rng(0)
    transform = ImageTransform(8, "random")
    crops = {transform.pixels(image, rng).tobytes() for _ in range(100)}
    assert crops == {np.asarray(image)[:, x : x + 8].tobytes() for x in range(4)}


def test_scales_leave_at_least_the_size(noise):
    image, rng = noise(1, (12, 8)), np.random.default_rng(0)
    transform = ImageTransform(4, "random", scales=(1, 2, 4))  # a quarter of 8 is less than 4
    half = np.asarray(image.resize((6, 4), Image.Resampling.BICUBIC))
    expected = {half[:, x : x + 4].tobytes() for x in range(3)}
    expected |= {np.asarray(image)[y : y + 4, x : x + 4].tobytes() for y in range(5) for x in range(9)}
    crops = [transform.pixels(image, rng).tobytes() for _ in range(600)]
    assert set(crops) == expected
    assert 240 < sum(crop in {half[:, x : x + 4].tobytes() for x in range(3)} for crop in crops) < 360
    enlarged = ImageTransform(16, "random", scales=(2,)).pixels(noise(1), rng)
    assert np.array_equal(enlarged, np.asarray(noise(1).resize((16, 16), Image.Resampling.BICUBIC)))


def test_what_was_resized_before_is_cropped(noise):
    image, other = noise(1, (12, 8)), noise(2, (6, 4))
    transform = ImageTransform(4, "center")
    assert np.array_equal(transform.pixels(image, resized=[np.asarray(other)]), np.asarray(other)[:, 1:5])
    assert np.array_equal(transform.pixels(image, resized=[np.asarray(image)]), transform.pixels(image))


def test_flip_is_fair(noise):
    image, rng = noise(1), np.random.default_rng(0)
    straight, mirrored = np.asarray(image).tobytes(), np.asarray(image)[:, ::-1].tobytes()
    transform = ImageTransform(8, "center", flip=True)
    results = [transform.pixels(image, rng).tobytes() for _ in range(400)]
    assert set(results) == {straight, mirrored}
    assert 150 < results.count(mirrored) < 250


@pytest.mark.parametrize("options", [{"crop": "random"}, {"flip": True}])
def test_randomness_needs_a_generator(noise, options):
    assert ImageTransform(4, **options).random
    with pytest.raises(ValueError, match="Generator"):
        ImageTransform(4, **options)(noise(1))
    assert not ImageTransform(4).random


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_tiny_and_thin(noise, size):
    assert ImageTransform(16)(noise(1, size)).shape == (3, 16, 16)


@pytest.mark.parametrize("crop", ["none", "center"])
def test_a_strip_is_refused_before_it_fills_the_memory(crop):
    with pytest.raises(BrokenImageError, match="1 x 60000 would be 256 x 15360000 after resizing"):
        ImageTransform(256, crop)(Image.new("RGB", (1, 60_000)))


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": None},
        {"crop": "middle"},
        {"resample": "nearest"},
        {"scales": (2,)},
        {"crop": "random", "scales": (0.5,)},
    ],
)
def test_bad_options(options):
    with pytest.raises(ValueError):
        ImageTransform(**options)


@pytest.mark.parametrize("size", [16, 40, 90])
def test_fast_resizing_differs_by_two_levels_at_most(size):
    small = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for image in (
        Image.fromarray(small).resize((75, 51), Image.Resampling.BICUBIC),
        Image.new("RGB", (75, 51), "red"),
    ):
        exact = ImageTransform(size).pixels(image).astype(int)
        fast = ImageTransform(size, fast=True).pixels(image).astype(int)
        assert fast.shape == exact.shape
        assert np.abs(fast - exact).max() <= 2
    with pytest.raises(ValueError, match="bicubic"):
        ImageTransform(size, fast=True, resample="lanczos")


def test_load_image_takes_files_bytes_and_images_and_turns_them(tmp_path, noise):
    image, exif, file = noise(0, (60, 40)), Image.Exif(), tmp_path / "a.png"
    exif[0x0112] = 6  # turn it clockwise
    image.save(file, exif=exif)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    opened = Image.open(file)
    for source in (file, str(file), file.read_bytes(), opened):
        loaded = load_image(source)
        assert torch.equal(loaded, to_tensor(turned)[None])
    assert opened.getexif()[0x0112] == 6  # the caller's image stays as it is
    short = min(image.size)
    assert torch.equal(load_image(file, size=20, crop="center")[0], ImageTransform(20)(turned))
    long = load_image(turned, size=20)
    assert sorted(long.shape[2:]) == [20, 20 * max(image.size) // short]


def test_load_image_composites_on_white_and_refuses_what_is_none():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert torch.equal(load_image(clear), torch.ones(1, 3, 4, 4))
    assert load_image(Image.new("L", (4, 4), 255)).shape == (1, 3, 4, 4)
    with pytest.raises(BrokenImageError, match="No such file"):
        load_image("nowhere.png")
    with pytest.raises(ValueError, match="crop 'center' needs a size"):
        load_image(clear, crop="center")
