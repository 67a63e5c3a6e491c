"""A chunk of images decoded, ready for a device; and its tokens. Both travel between processes."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gsqtok.data import BrokenImageError, decode_pixels
from gsqtok.tokens.sources import Chunk
from gsqtok.tokens.views import Views


class Task(NamedTuple):
    """A chunk and its place: the ``index``-th of a unit."""

    unit: int
    index: int
    chunk: Chunk


class Image(NamedTuple):
    """What a row says besides its tokens: key, original (height, width) in pixels, and the columns carried along."""

    key: str
    size: tuple[int, int]
    columns: dict[str, Any]


class Group(NamedTuple):
    """Views of one shape: number of the image and of the view of each."""

    shape: tuple[int, int]
    members: list[tuple[int, int]]


@dataclass(frozen=True)
class DecodedChunk:
    """Pixels of a chunk.

    Attributes:
        unit: of the task.
        index: of the task.
        images: those that could be read.
        rejects: (key, reason) of the others.
        groups: the views by shape, in the order of ``pixels``.
        pixels: uint8, one after another, (H, W, 3) each; None on the way between processes that share their memory.
        bytes_read: encoded bytes.
        seconds: of a processor, for decoding.
    """

    unit: int
    index: int
    images: list[Image]
    rejects: list[tuple[str, str]]
    groups: list[Group]
    pixels: Tensor | None
    bytes_read: int
    seconds: float

    @property
    def size(self) -> int:
        """Bytes of the pixels."""
        return sum(self._sizes())

    def _sizes(self) -> list[int]:
        return [len(group.members) * group.shape[0] * group.shape[1] * 3 for group in self.groups]

    def on(self, pixels: Tensor | None) -> DecodedChunk:
        """The same with its pixels elsewhere."""
        return replace(self, pixels=pixels)

    def views(self) -> list[Tensor]:
        """The pixels of each group: uint8 (n, H, W, 3)."""
        pieces = self.pixels.split(self._sizes()) if self.groups else []
        return [piece.view(-1, *group.shape, 3) for piece, group in zip(pieces, self.groups, strict=True)]


@dataclass(frozen=True)
class EncodedChunk:
    """Tokens of a chunk.

    Attributes:
        tokens: ((image, view), tokens (h, w, G)), in the order of images and views.
    """

    unit: int
    index: int
    images: list[Image]
    rejects: list[tuple[str, str]]
    tokens: list[tuple[tuple[int, int], np.ndarray]]
    bytes_read: int
    seconds: float


@dataclass(frozen=True)
class Decode:
    """Decodes chunks: views of every image, padded (edges repeated) to multiples of the tokenizer's factor.

    Attributes:
        views: what to make of an image.
        factor: the tokenizer's down-sampling factor; 1 pads nothing.
        max_pixels: larger images are rejected before they are decoded; None: see ``decode_image``.
    """

    views: Views
    factor: int
    max_pixels: int | None = None

    def room(self, task: Task) -> int:
        """Bytes that the pixels of a task take, if its images have the size of the views or are 512 pixels wide."""
        side = self.views.size or 512
        side += -side % self.factor
        return task.chunk.span.count * self.views.number * side**2 * 3

    def __call__(self, task: Task, room: Tensor | None = None) -> DecodedChunk:
        """Read and decode; an image that cannot be read is rejected, with the reason.

        Args:
            task: what to read.
            room: bytes for the pixels, if they suffice.

        Raises:
            OSError, ValueError: see ``Chunk.rows``.
        """
        start = time.thread_time()
        images, rejects, bytes_read = [], [], 0
        groups: dict[tuple[int, int], list[tuple[tuple[int, int], np.ndarray]]] = {}
        for row in task.chunk.rows():
            bytes_read += len(row.data or b"")
            try:
                if row.error is not None:
                    raise BrokenImageError(row.error)
                image = decode_pixels(row.data, max_pixels=self.max_pixels)
                views = [self._pad(view) for view in self.views(image)]
            except BrokenImageError as error:
                rejects.append((row.key, str(error)))
                continue
            for number, view in enumerate(views):
                groups.setdefault(view.shape[:2], []).append(((len(images), number), view))
            images.append(Image(row.key, image.shape[:2], row.columns))
        flat = [view for group in groups.values() for _, view in group]
        total = sum(view.size for view in flat)
        fits = room is not None and total <= len(room)
        pixels = room[:total] if fits else torch.empty(total, dtype=torch.uint8)
        place = 0
        for view in flat:
            pixels.numpy()[place : place + view.size].reshape(view.shape)[:] = view
            place += view.size
        shapes = [Group(shape, [member for member, _ in group]) for shape, group in groups.items()]
        seconds = time.thread_time() - start
        return DecodedChunk(task.unit, task.index, images, rejects, shapes, pixels, bytes_read, seconds)

    def _pad(self, view: np.ndarray) -> np.ndarray:
        bottom, right = (-side % self.factor for side in view.shape[:2])
        return np.pad(view, ((0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else view


def encoded(chunk: DecodedChunk, grids: list[np.ndarray | str]) -> EncodedChunk:
    """Put the tokens of the groups' views, in their order, in the order of images and views.

    An image of which a view could not be encoded (a string: the reason) is rejected.
    """
    members = itertools.chain.from_iterable(group.members for group in chunk.groups)
    tokens = sorted(zip(members, grids, strict=True), key=lambda pair: pair[0])
    failed = {image: grid for (image, _), grid in tokens if isinstance(grid, str)}
    kept = [image for image in range(len(chunk.images)) if image not in failed]
    number = {image: i for i, image in enumerate(kept)}
    return EncodedChunk(
        chunk.unit,
        chunk.index,
        [chunk.images[image] for image in kept],
        chunk.rejects + [(chunk.images[image].key, reason) for image, reason in failed.items()],
        [((number[image], view), grid) for (image, view), grid in tokens if image in number],
        chunk.bytes_read,
        chunk.seconds,
    )
