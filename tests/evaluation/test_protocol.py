"""Named protocols against guided-diffusion's rule written out in floating point, and against timm's own transform."""

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from gsqtok.data import ImageTransform
from gsqtok.data.decode import BrokenImageError
from gsqtok.evaluation.protocol import PROTOCOLS, AdmTransform, TimmTransform, prepare

SIZES = [(500, 375), (375, 500), (64, 64), (129, 257), (63, 200), (131, 64), (32, 48), (1024, 300), (127, 127)]


def photo(width, height, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def box(x):
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def bicubic(x, a=-0.5):
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resized(pixels, width, height, kernel):
    """Separable, the kernel as wide as the reduction and sampled at pixel centres, 8 bits after each of two passes."""
    for axis, out in ((1, width), (0, height)):
        n = pixels.shape[axis]
        if n == out:
            continue
        scale = n / out
        centre = (np.arange(out)[:, None] + 0.5) * scale
        weights = kernel((np.arange(n)[None] + 0.5 - centre) / max(scale, 1))
        weights /= weights.sum(1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
        pixels = np.clip(np.floor(pixels + 0.5), 0, 255)
    return pixels


def adm_in_float(image, size):
    pixels = np.asarray(image).astype(float)
    while min(pixels.shape[:2]) >= 2 * size:
        pixels = resized(pixels, pixels.shape[1] // 2, pixels.shape[0] // 2, box)
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    pixels = resized(pixels, round(width * scale), round(height * scale), bicubic)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize("sides", SIZES)
def test_adm_equals_the_rule_in_float(sides):
    image = photo(*sides)
    expected = adm_in_float(image, 64)
    pixels = AdmTransform(64).pixels(image)
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    # Pillow's weights are fixed-point numbers of 22 bits: a tie may fall to the other side
    assert np.abs(pixels - expected).max() <= 1
    assert (pixels != expected).mean() < 1e-3


def test_adm_halves_from_twice_the_size_on():
    image = photo(129, 257)
    once = image.resize((64, 128), Image.Resampling.BOX)
    assert (AdmTransform(64).pixels(image) == np.asarray(once)[32:96]).all()
    image = photo(127, 127)
    assert (AdmTransform(64).pixels(image) == np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC))).all()


def test_adm_leaves_the_odd_pixel_right_and_below():
    image = photo(67, 64)
    assert (AdmTransform(64).pixels(image) == np.asarray(image)[:, 1:65]).all()


@pytest.mark.parametrize("sides", SIZES)
@pytest.mark.parametrize("size", [64, 56])
def test_flex_gen_equals_timms_evaluation_transform(sides, size):
    image = photo(*sides)
    theirs = timm.data.create_transform(size, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    ours = TimmTransform(size)
    assert torch.equal(ours(image), theirs(image)) or (ours(image) - theirs(image)).abs().max() < 1e-6


def test_flex_gen_resizes_to_292():
    transform, record = prepare("flex_gen")
    assert (transform.resize_to, transform.size) == (292, 256)
    assert record["crop"] == "center of 292"
    assert record["resize_filter"] == "bilinear"


def test_native_keeps_images():
    image = photo(37, 21)
    transform, record = prepare("native")
    assert (transform.pixels(image) == np.asarray(image)).all()
    assert (record["size"], record["crop"], record["resize_filter"], record["antialias"]) == (None, "none", None, None)


def test_records_tell_protocols_apart():
    records = [prepare(name)[1] for name in PROTOCOLS]
    records.append(prepare("adm", 128)[1])
    own = (ImageTransform(256), ImageTransform(256, crop="none"), ImageTransform(256, resample="lanczos"))
    records += [prepare(transform=transform)[1] for transform in own]
    assert len({str(record) for record in records}) == len(records)
    assert prepare(transform=ImageTransform(None, crop="none"))[1] == prepare("native")[1]
    assert all(record["rounding"].startswith("8 bits") for record in records)


def test_bad_input():
    with pytest.raises(ValueError, match="adm, flex_gen, native"):
        prepare("imagenet")
    with pytest.raises(ValueError, match="leave the size out"):
        prepare("native", 64)
    with pytest.raises(ValueError, match="at least 1"):
        prepare("adm", 0)
    with pytest.raises(ValueError, match="without random"):
        prepare(transform=ImageTransform(64, crop="random"))
    for transform in (AdmTransform(), TimmTransform()):
        with pytest.raises(BrokenImageError, match="60000 x 1"):
            transform.pixels(Image.new("RGB", (60000, 1)))
