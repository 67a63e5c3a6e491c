"""A chunk of images on its way to tokens: read, decoded, encoded. It travels between processes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gsqtok.data.decode import BrokenImageError, decode_row
from gsqtok.data.sources import Reader, Span
from gsqtok.tokens.crops import Crops


@dataclass(frozen=True)
class Task:
    """Rows to read and their place: the ``index``-th chunk of a unit."""

    unit: int
    index: int
    span: Span


class Image(NamedTuple):
    """What a row says besides its tokens: key, original (height, width) in pixels, values of the extra columns."""

    key: str
    size: tuple[int, int]
    columns: dict[str, Any]


class Group(NamedTuple):
    """Crops of one shape: number of the image and of the crop of each."""

    shape: tuple[int, int]
    members: list[tuple[int, int]]


@dataclass(frozen=True)
class Chunk:
    """Images of a task.

    Attributes:
        unit: of the task.
        index: of the task.
        images: those that could be read.
        skipped: (key, reason) of the others.
        bytes_read: encoded bytes.
        seconds: of a processor, for decoding.
        groups: the crops by shape, in the order of ``pixels``.
        pixels: uint8, one after another, (H, W, 3) each; None on the way between processes that share their memory.
        tokens: once encoded, ((image, crop), tokens (h, w, G)) in the order of images and crops.
    """

    unit: int
    index: int
    images: list[Image]
    skipped: list[tuple[str, str]]
    bytes_read: int = 0
    seconds: float = 0.0
    groups: list[Group] = field(default_factory=list)
    pixels: Tensor | None = None
    tokens: list[tuple[tuple[int, int], np.ndarray]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of the pixels."""
        return sum(self._sizes())

    def _sizes(self) -> list[int]:
        return [len(group.members) * group.shape[0] * group.shape[1] * 3 for group in self.groups]

    def on(self, pixels: Tensor | None) -> Chunk:
        """The same with its pixels elsewhere."""
        return replace(self, pixels=pixels)

    def crops(self) -> list[Tensor]:
        """The pixels of each group: uint8 (n, H, W, 3)."""
        pieces = self.pixels.split(self._sizes()) if self.groups and self.pixels is not None else []
        return [piece.view(-1, *group.shape, 3) for piece, group in zip(pieces, self.groups, strict=True)]

    def encoded(self, grids: Sequence[np.ndarray | str]) -> Chunk:
        """The same with the tokens of its crops, in their order, instead of pixels.

        An image of which a crop could not be encoded (a string: the reason) is skipped.
        """
        members = itertools.chain.from_iterable(group.members for group in self.groups)
        tokens = sorted(zip(members, grids, strict=True), key=lambda pair: pair[0])
        failed = {image: grid for (image, _), grid in tokens if isinstance(grid, str)}
        kept = [image for image in range(len(self.images)) if image not in failed]
        number = {image: i for i, image in enumerate(kept)}
        return replace(
            self,
            images=[self.images[image] for image in kept],
            skipped=self.skipped + [(self.images[image].key, reason) for image, reason in failed.items()],
            groups=[],
            pixels=None,
            tokens=[
                ((number[image], crop), grid)
                for (image, crop), grid in tokens
                if image in number and not isinstance(grid, str)
            ],
        )


@dataclass(frozen=True)
class Decode:
    """Decodes tasks: crops of every image, padded (edges repeated) to multiples of the tokenizer's factor.

    Attributes:
        crops: what to make of an image.
        factor: the tokenizer's down-sampling factor; 1 pads nothing.
        max_pixels: larger images are skipped before they are decoded; None: see ``decode_image``.
    """

    crops: Crops
    factor: int
    max_pixels: int | None = None

    def room(self, task: Task) -> int:
        """Bytes that the pixels of a task take, if its images have the size of the crops or are 512 pixels wide."""
        side = self.crops.size or 512
        side += -side % self.factor
        return task.span.length * self.crops.number * side**2 * 3

    def __call__(self, task: Task, reader: Reader, room: Tensor | None = None) -> Chunk:
        """Read and decode; an image that cannot be read is skipped, with the reason.

        Args:
            task: what is read.
            reader: reads it.
            room: bytes for the pixels, if they suffice.

        Raises:
            OSError, ValueError: see ``Reader``.
        """
        start = time.thread_time()
        images: list[Image] = []
        skipped: list[tuple[str, str]] = []
        bytes_read = 0
        groups: dict[tuple[int, int], list[tuple[tuple[int, int], np.ndarray]]] = {}
        for row in reader():
            bytes_read += len(row.data or b"")
            try:
                image = decode_row(row, max_pixels=self.max_pixels)
                crops = [self._pad(crop) for crop in self.crops(image)]
            except BrokenImageError as error:
                skipped.append((row.key, str(error)))
                continue
            for number, crop in enumerate(crops):
                groups.setdefault(crop.shape[:2], []).append(((len(images), number), crop))
            images.append(Image(row.key, image.shape[:2], row.columns))
        flat = [crop for group in groups.values() for _, crop in group]
        total = sum(crop.size for crop in flat)
        if room is not None and total <= len(room):
            pixels = room[:total]
        else:
            pixels = torch.empty(total, dtype=torch.uint8)
        place = 0
        for crop in flat:
            pixels.numpy()[place : place + crop.size].reshape(crop.shape)[:] = crop
            place += crop.size
        shapes = [Group(shape, [member for member, _ in group]) for shape, group in groups.items()]
        seconds = time.thread_time() - start
        return Chunk(task.unit, task.index, images, skipped, bytes_read, seconds, shapes, pixels)

    def _pad(self, crop: np.ndarray) -> np.ndarray:
        bottom, right = (-side % self.factor for side in crop.shape[:2])
        return np.pad(crop, ((0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else crop
