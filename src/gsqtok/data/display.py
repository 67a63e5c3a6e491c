"""Images as a person looks at them: small ones enlarged, several in a grid."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from gsqtok.data.transforms import to_pil

LEGIBLE = 128  # pixels of the short side that are enough to see something
GAP = 2  # pixels between images


def enlargement(short: int) -> int:
    """How many times as large an image with this short side is shown: a whole number, so that pixels stay squares."""
    return -(-LEGIBLE // short)


def enlarged(image: Image.Image) -> Image.Image:
    """Repeat the pixels of an image whose short side is below ``LEGIBLE``; others stay as they are."""
    return image.resize([enlargement(min(image.size)) * side for side in image.size], Image.Resampling.NEAREST)


def grid(images: Sequence[Tensor], columns: int) -> Image.Image:
    """Images (3, H, W) in [-1, 1], all of one size, in rows of so many, on white; small ones enlarged."""
    shown = [enlarged(to_pil(image)) for image in images]
    width, height = shown[0].width + GAP, shown[0].height + GAP
    sheet = Image.new("RGB", (columns * width + GAP, -(-len(shown) // columns) * height + GAP), "white")
    for number, image in enumerate(shown):
        row, column = divmod(number, columns)
        sheet.paste(image, (GAP + column * width, GAP + row * height))
    return sheet
