"""Bytes or a file to an upright RGB image, or one line that says why not."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from gsqtok.io import one_line, read_bytes

if TYPE_CHECKING:
    from gsqtok.data.sources import Row

try:
    import simplejpeg
except ImportError:  # faster, never needed
    simplejpeg = None

# Raster formats only: EPS would start Ghostscript, and the rest are stubs without a decoder.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"),
    *("AVIF", "DIB", "ICO", "MPO", "PCX", "QOI", "TGA"),
)
_ORIENTATION_TAG = 0x0112
_BITS, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
_SIGNED = 2  # as a sample format
_PNG_DEPTH = 24  # the byte with the bits of a sample


class BrokenImageError(ValueError):
    """An image that cannot be read; the message is the reason, in one line."""


def decode_image(data: bytes | str | Path | Mapping[str, Any] | None, *, max_pixels: int | None = None) -> Image.Image:
    """Decode one image to upright 8-bit RGB.

    The EXIF orientation is applied, transparency is composited on white, 16-bit grey is scaled (value / 257) rather
    than clipped, float grey in [0, 1] is stretched to [0, 255], and of several frames the first is taken. What Pillow
    would misread (16-bit TIFF in planes, signed samples of 8 or 16 bits) is refused.

    Args:
        data: the encoded bytes, a path, or a row of a data set: ``{"bytes": ..., "path": ...}``.
        max_pixels: refuse images with more pixels than this before decoding them; default: Pillow's
            ``Image.MAX_IMAGE_PIXELS``, above which it warns of a decompression bomb.

    Raises:
        BrokenImageError: missing, empty, not an image, truncated, corrupt, or too large.
    """
    encoded = _read(data)
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    try:
        with Image.open(io.BytesIO(encoded), formats=_known_formats()) as image:
            if limit is not None and image.width * image.height > limit:
                raise BrokenImageError(f"{image.width} x {image.height} pixels, more than the limit of {limit}")
            if ImageFile.LOAD_TRUNCATED_IMAGES and _looks_truncated(encoded, image.format):
                raise BrokenImageError("truncated")
            if (pixels := _turbo(encoded, image)) is not None:
                return pixels
            _check_samples(image)
            image.load()
            return upright_rgb(image, encoded)
    except (BrokenImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImageError("not an image of a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenImageError(f"too many pixels: {one_line(error)}") from None
    except Exception as error:  # on corrupt input Pillow's readers raise nearly anything
        raise BrokenImageError(one_line(error)) from error


def upright_rgb(image: Image.Image, encoded: bytes = b"") -> Image.Image:
    """Turn Pillow's image as its EXIF orientation says, and make it 8-bit RGB as ``decode_image`` does.

    Args:
        image: it stays as it is.
        encoded: the file that it came from, where that is known.
    """
    rgb, orientation = _rgb(image, encoded), _orientation(image)
    if orientation != 1:
        rgb.getexif()[_ORIENTATION_TAG] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def decode_pixels(data: bytes | str | Path | Mapping[str, Any] | None, *, max_pixels: int | None = None) -> np.ndarray:
    """The same as uint8 (H, W, 3), sooner: Pillow need not look at a JPEG without metadata, which cannot be turned.

    Raises:
        BrokenImageError: see ``decode_image``.
    """
    encoded = _read(data)
    pixels = _plain_jpeg(encoded, Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels)
    return np.asarray(decode_image(encoded, max_pixels=max_pixels)) if pixels is None else pixels


def decode_row(row: Row, *, max_pixels: int | None = None) -> np.ndarray:
    """Decode the row of a source to uint8 (H, W, 3).

    Raises:
        BrokenImageError: also where the source says why the image is skipped.
    """
    if row.reason is not None:
        raise BrokenImageError(row.reason)
    return decode_pixels(row.data, max_pixels=max_pixels)


def _plain_jpeg(encoded: bytes, limit: int | None) -> np.ndarray | None:
    if simplejpeg is None or ImageFile.LOAD_TRUNCATED_IMAGES or not encoded.startswith(b"\xff\xd8\xff"):
        return None
    if b"\xff\xe1" in encoded or b"MPF\0" in encoded:  # EXIF or XMP, which may turn it; several images in one
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if colours not in ("YCbCr", "Gray") or (limit is not None and width * height > limit):
            return None
        pixels: np.ndarray = simplejpeg.decode_jpeg(encoded, "RGB", strict=True)
        return pixels
    except ValueError:  # Pillow finds the reason
        return None


def _read(data: bytes | str | Path | Mapping[str, Any] | None) -> bytes:
    if isinstance(data, Mapping):
        data = data.get("bytes") if data.get("bytes") is not None else data.get("path")
    if data is None:
        raise BrokenImageError("neither bytes nor a path")
    if isinstance(data, (str, os.PathLike)):
        try:
            data = read_bytes(data)
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise BrokenImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not data:
        raise BrokenImageError("zero bytes")
    return data


def _turbo(encoded: bytes, image: Image.Image) -> Image.Image | None:
    """A plain JPEG by simplejpeg: the pixels of Pillow, which links the same library, in about half the time.

    None where simplejpeg is not installed, or where the image needs more care: turned, CMYK, or damaged in any way.
    """
    if simplejpeg is None or image.format != "JPEG" or image.mode not in ("RGB", "L") or _orientation(image) != 1:
        return None
    try:
        return Image.fromarray(simplejpeg.decode_jpeg(encoded, "RGB", strict=True))
    except ValueError:
        return None


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _looks_truncated(encoded: bytes, image_format: str | None) -> bool:
    """Whether the end is missing. Needed only where another library told Pillow to pad truncated images with grey."""
    if image_format in ("JPEG", "MPO"):  # inside a scan FF is always stuffed, so FFD9 after the last FFDA is the end
        return encoded.rfind(b"\xff\xd9") < encoded.rfind(b"\xff\xda")
    return image_format == "PNG" and b"IEND" not in encoded[-64:] and b"IEND" not in encoded


def _orientation(image: Image.Image) -> int:
    try:
        orientation: int = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # corrupt metadata around intact pixels: the image is fine, its orientation unknown
        return 1
    return orientation


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) else value


def _check_samples(image: Image.Image) -> None:
    """Refuse TIFF files that Pillow misreads without a word."""
    bits = _tiff_tag(image, _BITS) or 1
    if bits == 16 and _tiff_tag(image, _PLANES) == 2 and image.info.get("compression") == "raw":
        raise BrokenImageError("TIFF of 16-bit colours in separate planes: store them pixel by pixel, or compressed")
    if _tiff_tag(image, _SAMPLE_FORMAT) == _SIGNED and bits < 32:
        raise BrokenImageError(f"TIFF of signed {bits}-bit samples, whose white is not known: store them unsigned")


def _rgb(image: Image.Image, encoded: bytes) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_deep_grey_to_8_bit(image)).convert("RGB")
    if image.has_transparency_data:
        clear = image.info.get("transparency")
        if isinstance(clear, tuple) and image.format == "PNG" and encoded[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10":
            image.info["transparency"] = tuple(value >> 8 for value in clear)  # as Pillow makes 8 bits of the pixels
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode == "LAB":  # Image.convert knows no LAB
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
    return image.convert("RGB")  # for RGB a copy that no longer hangs on the file


def _deep_grey_to_8_bit(image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits, (H, W), to uint8.

    Full scale is 65535, of integers beyond that the largest of their 32 bits, and 1 (else 255) of floats.
    """
    samples = np.asarray(image)
    unsigned = _tiff_tag(image, _BITS) == 32 and _tiff_tag(image, _SAMPLE_FORMAT) != _SIGNED and image.mode == "I"
    grey = np.nan_to_num((samples.view(np.uint32) if unsigned else samples).astype(np.float64))
    if image.mode == "F":
        grey = grey * 255 if grey.min() >= 0 and grey.max() <= 1 else grey
    elif grey.max() > 65535:
        grey = grey * (255 / (2**32 - 1 if unsigned else 2**31 - 1))
    else:
        grey = grey / 257
    if _tiff_tag(image, _PHOTOMETRIC) == 0:  # white is zero, which Pillow minds up to 8 bits
        grey = 255 - grey
    if isinstance(clear := image.info.get("transparency"), int):
        grey[samples == clear] = 255
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)
