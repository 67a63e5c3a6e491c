"""How images are prepared before they are measured, under a name that goes on record.

The same model has another rFID under every one of these. A result says which one it was measured under, and
`gsqtok.evaluation.differences` names what two results do not share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from gsqtok.data import ImageTransform, to_tensor
from gsqtok.data.decode import BrokenImageError

_MAX_RESIZED_PIXELS = 2**26


class EvaluationTransform(Protocol):
    """What an evaluation loader asks of a transform: `gsqtok.data.ImageTransform` and the classes here have it."""

    @property
    def random(self) -> bool:
        """Whether the result depends on a generator."""

    def pixels(self, image: Image.Image | np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """RGB image, or uint8 (H, W, 3) -> uint8 (H, W, 3)."""


@dataclass(frozen=True)
class _Square:
    """A transform that gives ``size`` x ``size`` pixels."""

    size: int = 256
    random = False

    def pixels(self, image: Image.Image | np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """RGB image, or uint8 (H, W, 3) -> uint8 (size, size, 3)."""
        raise NotImplementedError

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image -> float32 (3, size, size) in [-1, 1]."""
        return to_tensor(self.pixels(image))


class AdmTransform(_Square):
    """The centre crop of guided-diffusion (Dhariwal and Nichol 2021, arXiv 2105.05233), which most rFIDs are under.

    While the short side is at least twice ``size``, the image is halved with a box filter, each side rounded down;
    then the short side becomes ``size`` by Pillow's bicubic filter, the long side rounded to the nearest even where it
    is a tie; then the centre is cut out, an odd margin leaving the extra pixel at the right and the bottom.
    """

    def pixels(self, image: Image.Image | np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """RGB image, or uint8 (H, W, 3) -> uint8 (size, size, 3)."""
        image = _as_image(image)
        while min(image.size) >= 2 * self.size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = self.size / min(image.size)
        image = _resized(image, round(image.width * scale), round(image.height * scale), Image.Resampling.BICUBIC)
        return _cut(image, (image.width - self.size) // 2, (image.height - self.size) // 2, self.size)


class TimmTransform(_Square):
    """timm's evaluation transform at its defaults: short side to size / 0.875 (292 for 256), bilinear, centre crop.

    Pixel for pixel ``timm.data.create_transform(size)`` before its normalisation: Pillow's antialiased filter, the long
    side rounded down.
    """

    @property
    def resize_to(self) -> int:
        """The short side before the crop, in pixels."""
        return int(self.size / 0.875)

    def pixels(self, image: Image.Image | np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """RGB image, or uint8 (H, W, 3) -> uint8 (size, size, 3)."""
        image = _as_image(image)
        width, height = (int(self.resize_to * side / min(image.size)) for side in image.size)
        image = _resized(image, width, height, Image.Resampling.BILINEAR)
        return _cut(image, round((width - self.size) / 2), round((height - self.size) / 2), self.size)


class FittedTransform(_Square):
    """An image scaled to a square with Pillow's Lanczos filter: what hangs over is cut off, or what is missing black.

    VTBench's preparation (Lin et al. 2025, arXiv 2505.13439; data_processing.py of its code).
    """

    pad = False

    def pixels(self, image: Image.Image | np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """RGB image, or uint8 (H, W, 3) -> uint8 (size, size, 3)."""
        image = _as_image(image)
        scale = self.size / (max(image.size) if self.pad else min(image.size))
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = _resized(image, width, height, Image.Resampling.LANCZOS)
        # Where the image is smaller the margin is negative, and rounds to the same side as the original's.
        left, top = ((side - self.size) // 2 if side > self.size else -((self.size - side) // 2) for side in image.size)
        return _cut(image, left, top, self.size)


class PaddedTransform(FittedTransform):
    """The whole image in the square's middle, with black around it."""

    pad = True


def _as_image(image: Image.Image | np.ndarray) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def _resized(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    if width * height > _MAX_RESIZED_PIXELS:  # a strip one pixel high would become a wall
        raise BrokenImageError(f"{image.width} x {image.height} would be {width} x {height} after resizing")
    return image if image.size == (width, height) else image.resize((width, height), resample)


def _cut(image: Image.Image, left: int, top: int, size: int) -> np.ndarray:
    return np.asarray(image.crop((left, top, left + size, top + size)))


PROTOCOLS = {
    "adm": "short side to SIZE (256) by box halving and bicubic, centre crop, as guided-diffusion; most rFIDs",
    "flex_gen": "short side to SIZE / 0.875 (292 for 256), bilinear, centre crop SIZE, as the original GSQ evaluation",
    "native": "images as they are",
    "vtbench": "VTBench: short side to SIZE (256) by Lanczos, centre crop; measured at 256 px",
    "vtbench_padded": "VTBench, for its models that see the whole image: long side to SIZE, black around it",
}
"""How images are prepared, by the name of a protocol."""


def prepare(
    protocol: str | None = None, size: int | None = None, transform: ImageTransform | None = None
) -> tuple[EvaluationTransform, dict[str, Any]]:
    """Return the transform of a protocol, and what goes on record about it.

    Args:
        protocol: one of ``PROTOCOLS``; None means ``"native"``.
        size: pixels of a side; None means the protocol's own, 256.
        transform: one of your own instead, which goes on record as "custom".

    Raises:
        ValueError: an unknown name, a size under 1 or for ``native``, a protocol (or a size) and a transform at once,
            or a transform with random parts.
    """
    if transform is not None:
        if protocol is not None or size is not None:
            raise ValueError("name a protocol (and its size) or give a transform, not both")
        if transform.random:
            raise ValueError("evaluation takes every image as it is: use a transform without random crop or flip")
        if transform.size is not None:
            return transform, _record("custom", transform.size, transform.crop, transform.resample)
        return transform, _record("native", None, "none", None)
    name = protocol or "native"
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if name == "adm":
        return AdmTransform(size or 256), _record(name, size or 256, "center", "box halving, bicubic")
    if name == "flex_gen":
        timm = TimmTransform(size or 256)
        return timm, _record(name, timm.size, f"center of {timm.resize_to}", "bilinear")
    if name.startswith("vtbench"):
        fitted = (PaddedTransform if name == "vtbench_padded" else FittedTransform)(size or 256)
        record = _record(name, fitted.size, "none, padded with black" if fitted.pad else "center", "lanczos")
        return fitted, record | {"rounding": "8 bits, truncated; measured at 256 px, bilinear"}
    if size is not None:
        raise ValueError("the protocol 'native' keeps images as they are: leave the size out")
    return ImageTransform(None, crop="none"), _record(name, None, "none", None)


def _record(name: str, size: int | None, crop: str, resize_filter: str | None) -> dict[str, Any]:
    # Pillow's filters widen with the reduction, which is what antialiasing means; nothing here resizes otherwise.
    antialias = None if resize_filter is None else True
    return {
        **{"name": name, "size": size, "crop": crop, "resize_filter": resize_filter, "antialias": antialias},
        **{"rounding": "8 bits", "features": None, "reference": None},
    }
