import io
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile, ImageOps

from gsqtok.data import BrokenImageError, decode, decode_image, decode_pixels


def encode(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def pixels(data):
    image = decode_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_bytes_path_and_row_agree(tmp_path, encoded, noise):
    data = encoded(1)
    path = tmp_path / "bild ä 图.png"
    path.write_bytes(data)
    for form in (data, path, str(path), {"bytes": data, "path": "x"}, {"bytes": None, "path": str(path)}):
        np.testing.assert_array_equal(pixels(form), np.asarray(noise(1)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation, image_format):
    corners = Image.new("RGB", (48, 32))
    for colour, box in (("red", (0, 0, 16, 16)), ("lime", (32, 0, 48, 16)), ("blue", (0, 16, 16, 32))):
        corners.paste(colour, box)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(corners, image_format, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pixels(data), np.asarray(expected.convert("RGB")))
    swapped = orientation >= 5
    assert decode_image(data).size == ((32, 48) if swapped else (48, 32))


def test_orientation_six_turns_clockwise():
    """A camera held upright: the stored left edge is the top (EXIF 2.32, section 4.6.4)."""
    stored = Image.fromarray(np.array([[[1, 1, 1], [2, 2, 2]], [[3, 3, 3], [4, 4, 4]]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pixels(encode(stored, exif=exif))[..., 0].tolist() == [[3, 1], [4, 2]]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_corrupt_exif_does_not_matter(encoded):
    data = encoded(3, image_format="JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert pixels(data).shape == (8, 8, 3)


def test_grey():
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(RAMP))), np.stack([RAMP] * 3, -1))


def test_one_bit():
    checker = (np.indices((8, 8)).sum(0) % 2).astype(bool)
    expected = np.stack([checker * np.uint8(255)] * 3, -1)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(checker))), expected)


def test_alpha_is_composited_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = (255, 0, 51)
    expected = [[200, 0, 0], [255, 255, 255], [244, 204, 204]]  # 51/255 = 0.2 of the colour, 0.8 of white
    np.testing.assert_allclose(pixels(encode(Image.fromarray(rgba)))[0].astype(int), expected, atol=1)


def test_grey_with_alpha_is_composited_on_white():
    la = np.array([[[100, 255], [100, 0]]], np.uint8)
    assert pixels(encode(Image.fromarray(la, "LA")))[0].tolist() == [[100] * 3, [255] * 3]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_palette_with_transparency(transparency):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    plain = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    assert pixels(encode(image))[0].tolist() == plain
    assert pixels(encode(image, transparency=transparency))[0].tolist() == [plain[0], [255] * 3, plain[2]]


def test_colour_key_transparency():
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert pixels(encode(image, transparency=(4, 5, 6)))[0].tolist() == [[1, 2, 3], [255, 255, 255]]


def test_cmyk():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    np.testing.assert_allclose(pixels(encode(cmyk, "JPEG", quality=100))[0, 0].astype(int), [255, 0, 0], atol=3)
    np.testing.assert_array_equal(pixels(encode(cmyk, "TIFF"))[0, 0], [255, 0, 0])


def test_ycbcr_and_lab():
    red = Image.new("RGB", (4, 4), (200, 30, 40))
    np.testing.assert_allclose(
        pixels(encode(red.convert("YCbCr"), "TIFF", compression="tiff_lzw"))[0, 0].astype(int), [200, 30, 40], atol=2
    )
    from PIL import ImageCms

    lab = ImageCms.profileToProfile(
        red, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    np.testing.assert_allclose(pixels(encode(lab, "TIFF"))[0, 0].astype(int), [200, 30, 40], atol=4)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(image_format):
    deep = RAMP.astype(np.uint16) * 257
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(deep), image_format))[..., 1], RAMP)


def test_sixteen_bit_grey_rounds():
    assert pixels(encode(Image.fromarray(np.array([[128, 129, 65535]], np.uint16))))[0, :, 0].tolist() == [0, 1, 255]


def test_big_endian_sixteen_bit_tiff():
    image = Image.frombytes("I;16B", (2, 1), np.array([257, 65535], ">u2").tobytes())
    assert pixels(encode(image, "TIFF"))[0, :, 0].tolist() == [1, 255]


def tiff(samples, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)
    return buffer.getvalue()


UNIT = np.linspace(0, 1, 16).reshape(4, 4)
COLOURS = np.stack([UNIT, UNIT[::-1], UNIT.T], -1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.float32])
@pytest.mark.parametrize("white", ["minisblack", "miniswhite"])
def test_grey_tiff_of_any_depth_where_white_is_one_or_zero(dtype, white):
    data = tiff((UNIT * (np.iinfo(dtype).max if dtype != np.float32 else 1)).astype(dtype), photometric=white)
    if (dtype, white) == (np.uint32, "miniswhite"):  # which Pillow does not know
        with pytest.raises(BrokenImageError, match="not an image of a known format"):
            decode_image(data)
    else:
        expected = UNIT if white == "minisblack" else 1 - UNIT
        np.testing.assert_allclose(pixels(data)[..., 0], expected * 255, atol=0.51)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_with_colours_in_planes_is_right_or_refused(dtype, compression):
    samples = (COLOURS * np.iinfo(dtype).max).astype(dtype)
    for alpha in (False, True):
        own = np.concatenate([samples, np.full_like(samples[..., :1], np.iinfo(dtype).max)], -1) if alpha else samples
        options = {"photometric": "rgb", "compression": compression, "extrasamples": ["unassalpha"] if alpha else None}
        np.testing.assert_allclose(pixels(tiff(own, **options)), COLOURS * 255, atol=1)
        data = tiff(np.moveaxis(own, -1, 0), planarconfig="separate", **options)
        if dtype == np.uint16 and compression is None:
            with pytest.raises(BrokenImageError, match="16-bit colours in separate planes: store them pixel by pixel"):
                decode_image(data)
        else:
            np.testing.assert_allclose(pixels(data), COLOURS * 255, atol=1)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_signed_tiff_is_refused(dtype):
    with pytest.raises(BrokenImageError, match=r"signed (8|16)-bit samples"):
        decode_image(tiff((UNIT * np.iinfo(dtype).max).astype(dtype), photometric="minisblack"))


def test_turned_tiff_where_white_is_zero():
    samples = (UNIT * 65535).astype(np.uint16)
    data = tiff(samples, photometric="miniswhite", extratags=[(0x0112, 3, 1, 3, True)])  # upside down
    np.testing.assert_allclose(pixels(data)[..., 0], (1 - UNIT)[::-1, ::-1] * 255, atol=0.51)


def deep_png(samples, colour, clear):
    """A PNG of 16 bits with one transparent colour (PNG specification, 11.3.2.1)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    size = (samples.shape[1], samples.shape[0])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 16, colour, 0, 0, 0)) + chunk(b"tRNS", clear)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_transparent_colour_of_a_sixteen_bit_png():
    grey = np.array([[0, 25700, 25701, 65535]])
    assert pixels(deep_png(grey, 0, struct.pack(">H", 25700)))[0, :, 0].tolist() == [0, 255, 100, 255]
    colours = np.array([[[0x1234, 0, 0], [0x6400, 0, 0], [0x3400, 0, 0]]])
    found = pixels(deep_png(colours, 2, struct.pack(">HHH", 0x1234, 0, 0)))[0]
    assert found.tolist() == [[255] * 3, [0x64, 0, 0], [0x34, 0, 0]]


def test_thirty_two_bit_grey():
    sixteen = np.array([[0, 25700, 65535]], np.int32)
    full = np.array([[-5, 2**30, 2**31 - 1]], np.int32)
    assert pixels(encode(Image.fromarray(sixteen), "TIFF"))[0, :, 2].tolist() == [0, 100, 255]
    assert pixels(encode(Image.fromarray(full), "TIFF"))[0, :, 2].tolist() == [0, 128, 255]


def test_float_grey():
    unit = np.array([[0, 0.5, 1]], np.float32)
    byte = np.array([[-3, 100.4, np.nan]], np.float32)
    assert pixels(encode(Image.fromarray(unit), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    assert pixels(encode(Image.fromarray(byte), "TIFF"))[0, :, 0].tolist() == [0, 100, 0]


def test_first_frame(noise):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]


@pytest.fixture(params=[False, True], ids=["strict", "another library set LOAD_TRUNCATED_IMAGES"])
def pillow_flag(request, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", request.param)
    return request.param


@pytest.mark.parametrize("options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})], ids=str)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_truncated(encoded, pillow_flag, options, kept):
    data = encoded(1, (64, 64), options[0], **options[1])
    assert pixels(data).shape == (64, 64, 3)
    with pytest.raises(BrokenImageError) as error:
        decode_image(data[: int(len(data) * kept)])
    assert "\n" not in str(error.value)
    assert pillow_flag == ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("image_format", ["WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_truncated(encoded, image_format):
    data = encoded(1, (64, 64), image_format)
    assert pixels(data).shape == (64, 64, 3)
    with pytest.raises(BrokenImageError):
        decode_image(data[: len(data) // 2])


def test_corrupt_png(encoded):
    data = bytearray(encoded(1, (64, 64)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BrokenImageError):
        decode_image(bytes(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"hello, I am a text file", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
        (None, "neither bytes nor a path"),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        ({"bytes": b"", "path": "x.png"}, "zero bytes"),
        ("no/such/file.png", "No such file"),
        ("null\0.png", "cannot be read"),
    ],
)
def test_not_an_image(data, reason):
    with pytest.raises(BrokenImageError, match=reason):
        decode_image(data)


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("fifo.png", "zero.png", ""):
        with pytest.raises(BrokenImageError, match="cannot be read: not a regular file"):
            decode_image(tmp_path / name)


def test_too_many_pixels(encoded, monkeypatch):
    data = encoded(1, (40, 30))
    assert decode_image(data, max_pixels=1200).size == (40, 30)
    with pytest.raises(BrokenImageError, match="40 x 30 pixels, more than the limit of 1199"):
        decode_image(data, max_pixels=1199)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow itself refuses twice its limit
    with pytest.raises(BrokenImageError, match="too many pixels"):
        decode_image(data)


TURNED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    "options",
    [
        {"format": "JPEG"},
        {"format": "JPEG", "progressive": True, "quality": 30},
        {"format": "JPEG", "exif": TURNED},
        {"format": "JPEG", "icc_profile": b"x" * 500, "comment": b"\xff\xe1"},
        {"format": "PNG"},
    ],
    ids=["plain", "progressive", "turned", "profile", "png"],
)
def test_pixels_are_those_of_the_image(encoded, options):
    data = encoded(1, (40, 30), options["format"], **{k: v for k, v in options.items() if k != "format"})
    assert decode_pixels(data).shape == ((40, 30, 3) if "exif" in options else (30, 40, 3))
    assert np.array_equal(decode_pixels(data), np.asarray(decode_image(data)))
    with pytest.raises(BrokenImageError, match="more than the limit of 1199"):
        decode_pixels(data, max_pixels=1199)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_pixels_of_other_colours_are_those_of_the_image(noise, mode):
    data = encode(noise(1).convert(mode), "JPEG")
    assert np.array_equal(decode_pixels(data), np.asarray(decode_image(data)))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pixels_of_damaged_images_end_like_the_image(encoded, pillow_flag):
    rng = np.random.default_rng(0)
    data = encoded(1, (40, 30), "JPEG")
    ends = {"pixels": 0, "reason": 0}
    for _ in range(300):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(2, len(damaged), 2)] = rng.integers(0, 256, 2)
        damaged = damaged.tobytes()[: rng.choice([len(data), len(data) - 20])]
        kind, expected = _end(decode_image, damaged)
        assert _end(decode_pixels, damaged) == (kind, expected)
        ends[kind] += 1
    assert min(ends.values()) > 20


def _end(function, data):
    try:
        return "pixels", np.asarray(function(data, max_pixels=10**6)).tolist()
    except BrokenImageError as error:
        return "reason", str(error)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_random_bytes_after_a_header_never_escape(encoded):
    """Whatever the damage: an image or a BrokenImageError, nothing else."""
    rng = np.random.default_rng(0)
    outcomes = {"image": 0, "broken": 0}
    for image_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "PCX"):
        data = encoded(1, (16, 16), image_format)
        for _ in range(40):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[rng.integers(0, len(damaged), 5)] = rng.integers(0, 256, 5)
            try:
                decode_image(damaged.tobytes(), max_pixels=10**6)
                outcomes["image"] += 1
            except BrokenImageError:
                outcomes["broken"] += 1
    assert min(outcomes.values()) > 20


def smooth(size=(67, 45)):
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "options",
    [
        *({"quality": 75, "subsampling": mode} for mode in ("4:4:4", "4:2:2", "4:2:0")),
        *({"progressive": True}, {"keep_rgb": True}, {"optimize": True, "restart_marker_rows": 1}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_simplejpeg_gives_the_pixels_of_pillow(options, mode):
    pytest.importorskip("simplejpeg")
    data = encode(smooth().convert(mode), "JPEG", **options)
    assert decode._turbo(data, Image.open(io.BytesIO(data))) is not None
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_what_simplejpeg_may_not_decide():
    """Colours of print, and anything damaged, go to Pillow, which says what is wrong."""
    data = encode(smooth().convert("CMYK"), "JPEG")
    assert decode._turbo(data, Image.open(io.BytesIO(data))) is None
    data = encode(smooth(), "JPEG")
    assert decode._turbo(data[:-200], Image.open(io.BytesIO(data[:-200]))) is None
    with pytest.raises(BrokenImageError, match="truncated"):
        decode_image(data[:-200])


def test_without_simplejpeg(monkeypatch):
    data = encode(smooth(), "JPEG")
    expected = pixels(data)
    monkeypatch.setattr(decode, "simplejpeg", None)
    np.testing.assert_array_equal(pixels(data), expected)
