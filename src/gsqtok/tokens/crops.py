"""What is tokenized of an image: its whole, its centre, or ten crops, and mirrored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

from gsqtok.data import ImageTransform


@dataclass(frozen=True)
class Crops:
    """Resize and crop an image to the crops that become rows of a token data set.

    Attributes:
        size: side of the crops in pixels; with ``crop="none"``, the short side. None: images keep their size.
        crop: "none" keeps the aspect ratio, "center" cuts out the central square, "ten" takes the four corners, the
            centre, and the same of the mirror image (as torchvision's TenCrop, in its order).
        resize: the short side before the crop; default: ``size``, and 1.1 ``size`` (rounded) for ten crops.
        flip: add each crop's mirror image.
        resample: "bicubic" or "lanczos".
        fast: see ``gsqtok.data.ImageTransform``.
    """

    size: int | None = 256
    crop: Literal["none", "center", "ten"] = "center"
    resize: int | None = None
    flip: bool = False
    resample: Literal["bicubic", "lanczos"] = "bicubic"
    fast: bool = False
    _resized: ImageTransform = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.crop not in ("none", "center", "ten"):
            raise ValueError(f"crop must be 'none', 'center' or 'ten', got {self.crop!r}")
        if self.size is None and (self.crop != "none" or self.resize is not None):
            raise ValueError(f"crop {self.crop!r} and resize need a size")
        if self.resize is not None and (self.crop == "none" or self.size is None or self.resize < self.size):
            raise ValueError(f"resize goes with a crop and is at least size, got {self.resize}")
        if self.crop == "ten" and self.flip:
            raise ValueError("ten crops are five and their mirror images: leave out flip")
        short = self.resize or self.size
        if self.crop == "ten" and self.size is not None and self.resize is None:
            short = round(1.1 * self.size)
        object.__setattr__(self, "_resized", ImageTransform(short, crop="none", resample=self.resample, fast=self.fast))

    @property
    def number(self) -> int:
        """Crops of an image."""
        return 10 if self.crop == "ten" else 2 if self.flip else 1

    def settings(self) -> dict[str, int | str | bool | None]:
        """What the crops depend on, for JSON."""
        return {
            "size": self.size,
            "crop": self.crop,
            "resize": self._resized.size,
            "flip": self.flip,
            "resample": self.resample,
            "fast": self.fast,
        }

    def __call__(self, image: Image.Image | np.ndarray) -> list[np.ndarray]:
        """RGB image, or uint8 (H, W, 3) -> its crops, uint8 (H, W, 3) each.

        Raises:
            BrokenImageError: a strip so thin that the resized image would not fit in memory.
        """
        pixels = self._resized.pixels(image)
        windows = self._windows(pixels)
        if self.crop == "ten":
            windows += self._windows(pixels[:, ::-1])
        return windows + [window[:, ::-1] for window in windows] if self.flip else windows

    def _windows(self, pixels: np.ndarray) -> list[np.ndarray]:
        size = self.size
        if self.crop == "none" or size is None:
            return [pixels]
        bottom, right = pixels.shape[0] - size, pixels.shape[1] - size
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)] if self.crop == "ten" else []
        places = [*corners, (round(bottom / 2), round(right / 2))]
        return [pixels[top : top + size, left : left + size] for top, left in places]
