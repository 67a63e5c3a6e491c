"""Tokens of variable length: which groups of a position are kept, learnt from some of a source's images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch

from gsqtok.data import ImageSource, ImageTransform, to_float
from gsqtok.data.decode import BrokenImageError, decode_row
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokenizer.allocation import GroupAllocator, check_mean_groups

FILE = "allocation.safetensors"  # in a token data set
IMAGES = 256  # that are looked at
_TOGETHER = 16


def learn_allocation(
    tokenizer: ImageTokenizer, source: ImageSource, mean_groups: float, size: int | None
) -> GroupAllocator:
    """Learn from at most ``IMAGES`` images, spread over a source, how groups are given to positions.

    Args:
        tokenizer: with nested groups, before it is optimized for speed.
        source: the images.
        mean_groups: see ``GroupAllocator.fitted``.
        size: of the central squares that are looked at, in pixels, about; None: 256.

    Raises:
        ValueError: see ``GroupAllocator.fitted``.
    """
    check_mean_groups(tokenizer, mean_groups)  # before an image is read
    factor = tokenizer.factor or 1
    transform = ImageTransform(max(factor, (size or 256) // factor * factor))
    images = [to_float(torch.from_numpy(transform.pixels(image).copy())) for image in _spread(source)]
    return GroupAllocator.fitted(tokenizer, list(torch.stack(images).split(_TOGETHER)) if images else [], mean_groups)


def _spread(source: ImageSource) -> Iterator[Any]:
    """Images that can be read, from stretches spread over the source."""
    spans = list(source.spans(_TOGETHER))
    every = max(1, -(-len(spans) * _TOGETHER // IMAGES))
    for span in spans[::every]:
        for row in source.reader(span)():
            with suppress(BrokenImageError):
                yield decode_row(row)
