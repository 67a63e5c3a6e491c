"""JPEG, WebP and AVIF as yardsticks: what the same number of bits buys from an ordinary image codec.

A codec is measured like a tokenizer, on the same images with the same metrics. Each image is stored at the highest
quality whose file is no larger than the target, so no image borrows bits from another: that is how a tokenizer of a
fixed rate spends them. The whole file counts, headers and quantization tables included (some hundred bytes, which at
256 px and 0.25 bits/px is much of a JPEG file): a stored image needs them, while tokens need the tokenizer's weights.

Options, the same at every rate: chroma at half resolution (4:2:0) in all three; JPEG is baseline with optimized
Huffman tables; WebP is lossy with method 6 (the slowest); AVIF has Pillow's default speed 6 and one thread, which
makes its files the same everywhere. No metadata is stored.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from gsqtok.data import to_pil, to_tensor
from gsqtok.evaluation.result import Result

if TYPE_CHECKING:
    from gsqtok.evaluation.run import Reconstruction

_FIRST = 60  # the quality that is tried first
_DOUBLES = 20  # steps of quality that double a file, about
_INTERPOLATED = 6  # tries, before the range is halved
PREFIX = "codec:"
"""What a codec's name begins with where a tokenizer's would stand: ``codec:webp@0.5``."""


@dataclass(frozen=True)
class Codec:
    """An image codec held to a file size.

    Args:
        name: "jpeg", "webp" or "avif".
        target: bits per pixel that no file may exceed, headers included. An image whose file is larger even at the
            lowest quality is stored at that, and exceeds it.

    Raises:
        ValueError: an unknown codec, a target that is not positive, or a Pillow built without the codec.
    """

    name: str
    target: float

    OPTIONS: ClassVar[dict[str, dict[str, Any]]] = {
        "jpeg": {"subsampling": "4:2:0", "optimize": True},
        "webp": {"method": 6},  # lossy WebP knows 4:2:0 only
        "avif": {"subsampling": "4:2:0", "speed": 6, "max_threads": 1},
    }
    LOWEST: ClassVar[dict[str, int]] = {"jpeg": 1, "webp": 0, "avif": 0}  # quality; the highest is 100 for all

    def __post_init__(self) -> None:
        if self.name not in self.OPTIONS:
            raise ValueError(f"codec must be one of {', '.join(self.OPTIONS)}, got {self.name!r}")
        if not 0 < self.target < float("inf"):
            raise ValueError(f"the target must be a positive number of bits per pixel, got {self.target}")
        feature = "jpg" if self.name == "jpeg" else self.name
        if not features.check(feature):
            raise ValueError(f"this Pillow has no {self.name.upper()}: install pillow 11.3 or newer from PyPI")

    @classmethod
    def parse(cls, text: str) -> Codec:
        """From ``codec:NAME@BITS_PER_PIXEL``; raises ValueError."""
        name, _, target = text.removeprefix(PREFIX).partition("@")
        try:
            return cls(name.lower(), float(target))
        except ValueError as error:
            raise ValueError(f"'{text}' is no codec such as codec:webp@0.5: {error}") from error

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}@{self.target:g}"

    @property
    def model(self) -> dict[str, Any]:
        """The part ``model`` of a `Result`; ``bits_per_pixel`` is the target, the metrics hold what was used."""
        return {
            "name": self.name,
            "fingerprint": None,
            "quantizer": None,
            "factor": None,
            "bits_per_position": None,
            "bits_per_pixel": self.target,
            "precision": "8 bits",
            "parameters": None,
            "options": self.OPTIONS[self.name],
            "version": features.version("jpg" if self.name == "jpeg" else self.name),
        }

    def encode(self, image: Image.Image, quality: int) -> bytes:
        """An RGB image as a file of the codec, at a quality from ``LOWEST`` to 100."""
        image = Image.fromarray(np.asarray(image))  # Pillow would store the ICC profile of the image's own file
        file = io.BytesIO()
        image.save(file, self.name.upper(), quality=quality, **self.OPTIONS[self.name])
        return file.getvalue()

    def fit(self, image: Image.Image) -> bytes:
        """The file of highest quality that keeps to the target; at the lowest quality where none does.

        Sizes rise with quality but for a few steps where they fall by some bytes, so a step or two of quality may be
        missed there; the target is kept in any case. The logarithm of the size is interpolated between the qualities
        that were tried, which takes four to six files where halving the range takes eight.
        """
        limit = self.target * image.width * image.height / 8
        low, high = self.LOWEST[self.name] - 1, 101  # the highest that fits and the lowest that does not, so far
        below = above = math.nan  # of their files, the logarithm of size / limit
        best, tries = None, 0
        while high - low > 1:
            quality = low + (high - low) / 2 if tries > _INTERPOLATED else _guess(low, high, below, above)
            quality = min(max(int(quality), low + 1), high - 1)
            file, tries = self.encode(image, quality), tries + 1
            if len(file) <= limit:
                low, below, best = quality, math.log2(len(file) / limit), file
            else:
                high, above = quality, math.log2(len(file) / limit)
        return best or self.encode(image, self.LOWEST[self.name])

    def __call__(self, images: Tensor) -> Reconstruction:
        """Through the codec and back: (B, 3, H, W) in [-1, 1], with the bits of each file."""
        from gsqtok.evaluation.run import Reconstruction

        files = [self.fit(to_pil(image)) for image in images]
        restored = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
        bits = torch.tensor([8 * len(file) for file in files])
        return Reconstruction(to_tensor(np.stack(restored)).to(images.device), bits=bits)


def _guess(low: int, high: int, below: float, above: float) -> float:
    """The quality where the logarithm of size / limit is 0, from what is known of it at ``low`` and ``high``."""
    if math.isnan(below) and math.isnan(above):
        return _FIRST
    if math.isnan(above):
        return low - below * _DOUBLES
    if math.isnan(below):
        return high - above * _DOUBLES
    return low + (high - low) * below / (below - above)


def evaluate_codec(codec: Codec, dataset: Any, **options: Any) -> Result:
    """Measure a codec as `evaluate` measures a tokenizer.

    Args:
        codec: which, and at what size.
        dataset: what ``gsqtok.data.open_source`` takes or returns.
        options: everything that `measure` takes by keyword.

    Returns:
        A `Result` whose ``per_image["bits_per_pixel"]`` and ``metrics["bits_per_pixel"]`` are of the files.
        images_per_second is left out: most of the time goes into the search for the quality.

    Raises:
        ValueError: what `measure` raises.
    """
    from gsqtok.evaluation.run import measure

    result = measure(codec, dataset, model=codec.model, **options)
    del result.metrics["images_per_second"]
    return result
