"""An image to the tensor that a network takes, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from gsqtok.data.decode import BrokenImageError, decode_image, upright_rgb

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
_MAX_RESIZED_PIXELS = 2**26  # a strip of 1 x 60000 with its short side at 256 would be 4 thousand million pixels


@dataclass(frozen=True)
class ImageTransform:
    """Resize, crop and flip.

    The short side becomes ``size`` (smaller images are enlarged) with Pillow's antialiased filter, then a
    ``size`` x ``size`` window is cut out; pixel for pixel what torchvision's Resize and CenterCrop do. With
    ``size=None`` images keep their own size.

    Attributes:
        size: length of the short side in pixels; None: native size, which goes with ``crop="none"``.
        crop: "center", "random", or "none" (keeps the aspect ratio).
        flip: mirror left to right with probability 1/2.
        max_resize: with a random crop, the short side becomes a random length from ``size`` to ``max_resize`` (at most
            its own, if that is larger than ``size``): images are seen at several scales.
        scales: with a random crop, what the short side is divided by, one of these at random; only those are drawn from
            that leave at least ``size``, and where none does, the short side becomes ``size``.
        resample: "bicubic" or "lanczos".
        fast: resize with torch's bicubic kernel instead of Pillow's: nearly twice the images a second from
            photographs, and values that differ by at most 2 of 255 (measured; docs/token-datasets.md).
    """

    size: int | None = 256
    crop: Literal["center", "random", "none"] = "center"
    flip: bool = False
    resample: Literal["bicubic", "lanczos"] = "bicubic"
    max_resize: int | None = None
    scales: tuple[float, ...] = ()
    fast: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}")
        if self.crop not in ("center", "random", "none"):
            raise ValueError(f"crop must be 'center', 'random' or 'none', got {self.crop!r}")
        if self.resample not in _FILTERS:
            raise ValueError(f"resample must be one of {', '.join(_FILTERS)}, got {self.resample!r}")
        if self.fast and self.resample != "bicubic":
            raise ValueError(f"fast resizing is bicubic, not {self.resample}")
        if self.size is None and self.crop != "none":
            raise ValueError(f"crop {self.crop!r} needs a size; with size=None use crop='none'")
        if self.max_resize is not None and (self.crop != "random" or self.size is None or self.max_resize < self.size):
            raise ValueError(f"max_resize goes with crop='random' and is at least size, got {self.max_resize}")
        if self.scales and (self.crop != "random" or self.max_resize is not None or min(self.scales) < 1):
            raise ValueError(f"scales go with crop='random', without max_resize, and are at least 1, got {self.scales}")

    @property
    def random(self) -> bool:
        """Whether the result depends on a generator."""
        return self.flip or self.crop == "random"

    def __call__(self, image: Image.Image, generator: np.random.Generator | None = None) -> Tensor:
        """RGB image -> float32 (3, H, W) in [-1, 1].

        Raises:
            ValueError: random crop or flip without a generator.
            BrokenImageError: a strip so thin that the resized image would not fit in memory.
        """
        return to_tensor(self.pixels(image, generator))

    def pixels(
        self,
        image: Image.Image | np.ndarray,
        generator: np.random.Generator | None = None,
        resized: Sequence[np.ndarray] = (),
    ) -> np.ndarray:
        """The same before the change of type: uint8 (H, W, 3), also from such. A batch is turned into floats at once.

        It may be a view of the array, or of one in ``resized``: the same image, resized before (``resize``), which is
        cropped if it happens to have the size that is wanted.
        """
        pixels = np.asarray(image) if self.size is None else self._resized(image, self.size, generator, resized)
        return pixels[:, ::-1] if self.flip and _required(generator).random() < 0.5 else pixels

    def _resized(
        self,
        image: Image.Image | np.ndarray,
        size: int,
        generator: np.random.Generator | None,
        resized: Sequence[np.ndarray],
    ) -> np.ndarray:
        width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
        short, target = min(width, height), size
        if self.max_resize is not None:
            target = int(_required(generator).integers(size, max(size, min(self.max_resize, short)) + 1))
        elif lengths := [length for scale in self.scales if (length := int(short / scale)) >= size]:
            target = lengths[int(_required(generator).integers(len(lengths)))]
        full_width, full_height = full = size_at(target, width, height)
        if full_width * full_height > _MAX_RESIZED_PIXELS:
            raise BrokenImageError(f"{width} x {height} would be {full_width} x {full_height} after resizing")
        left, top, right, bottom = 0, 0, full_width, full_height
        if self.crop == "center":
            left, top = round((full_width - size) / 2), round((full_height - size) / 2)
        elif self.crop == "random":
            left = int(_required(generator).integers(full_width - size + 1))
            top = int(_required(generator).integers(full_height - size + 1))
        if self.crop != "none":
            right, bottom = left + size, top + size
        if (width, height) == full:
            ready = np.asarray(image)
        elif copies := [copy for copy in resized if copy.shape[1::-1] == full]:
            ready = copies[0]
        else:
            ready = _fast(image, full) if self.fast else resize(image, full, self.resample)
        return ready[top:bottom, left:right]


def load_image(
    image: str | Path | bytes | Image.Image, *, size: int | None = None, crop: Literal["center", "none"] = "none"
) -> Tensor:
    """Load one image as ``ImageTokenizer.encode`` takes it: float32 (1, 3, H, W) in [-1, 1].

    The EXIF orientation is applied, transparency is composited on white, and what is not 8-bit RGB becomes so.

    Args:
        image: a file, its bytes, or an image of Pillow.
        size: resize the short side to this many pixels, bicubic and antialiased; None keeps the image's own size.
        crop: "center": with ``size``, cut out the central square.

    Raises:
        BrokenImageError: it cannot be read; the message says why.
        ValueError: ``crop`` without ``size``.
    """
    if size is None and crop != "none":
        raise ValueError(f"crop {crop!r} needs a size")
    upright = upright_rgb(image) if isinstance(image, Image.Image) else decode_image(image)
    return ImageTransform(size, crop=crop)(upright)[None]


def size_at(short: int, width: int, height: int) -> tuple[int, int]:
    """Width and height of an image once its short side has this length."""
    return int(short * width / min(width, height)), int(short * height / min(width, height))


def resize(image: Image.Image | np.ndarray, size: tuple[int, int], resample: str = "bicubic") -> np.ndarray:
    """Resize to (width, height), antialiased: uint8 (H, W, 3)."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return np.asarray(image.resize(size, _FILTERS[resample]))


def _required(generator: np.random.Generator | None) -> np.random.Generator:
    if generator is None:
        raise ValueError("a random crop or flip needs a numpy Generator")
    return generator


def _fast(image: Image.Image | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic and antialiased, on bytes, for which torch has vector instructions: uint8 (H, W, 3)."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return functional.interpolate(pixels, size[::-1], mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """RGB image or uint8 (..., H, W, 3) -> float32 (..., 3, H, W) in [-1, 1]."""
    if isinstance(image, Image.Image):
        image = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return to_float(torch.from_numpy(np.array(image)))


def to_float(pixels: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """uint8 (..., H, W, 3), on any device -> float32 (..., 3, H, W) in [-1, 1]."""
    return pixels.movedim(-1, -3).to(torch.float32, memory_format=layout).div_(127.5).sub_(1)


def to_pil(tensor: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> RGB image; values are rounded and clamped.

    Raises:
        ValueError: another shape.
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"expected a tensor of shape (3, H, W), got {tuple(tensor.shape)}")
    pixels = tensor.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
