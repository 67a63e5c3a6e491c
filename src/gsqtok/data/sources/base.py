"""What every source of images is: parts of some format, cut into spans of rows that anyone can read alone."""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

UNKNOWN = -1  # as a length: only reading tells
_KEYS = 4096  # listed at once


class Row(NamedTuple):
    """One image, encoded; or why it cannot even be read.

    Attributes:
        key: unique within the source.
        data: the encoded bytes; None where there is a reason.
        columns: values of the extra columns.
        reason: why the image is skipped.
    """

    key: str
    data: bytes | None
    columns: dict[str, Any]
    reason: str | None = None


class Span(NamedTuple):
    """Consecutive rows: number of the part, first row in it, and how many (or ``UNKNOWN``: all of the part)."""

    part: int
    first: int
    length: int


Reader = Callable[[], Iterator[Row]]
"""Gives the rows of a span; small, and can be pickled.

Raises OSError if the source is out of reach, and ValueError if it is no longer what it was.
"""


class Part(ABC):
    """A file of rows, a list of image files, or a data set of the hub.

    Attributes:
        columns: the extra columns that it has.
        counted: whether it knows how many rows it has without reading them.
        by_number: whether single rows, in any order, are read as fast as others.
    """

    columns: Iterable[pa.Field] = ()
    counted: bool = True
    by_number: bool = False

    @abstractmethod
    def stamp(self) -> str:
        """Text that changes with the names, sizes and times of the files."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the rows; raises TypeError where only reading tells."""

    def spans(self, size: int | None) -> Iterator[tuple[int, int]]:
        """Cut into (first, length) of at most ``size`` rows; None: into its own pieces, without reading for it."""
        return cut(len(self), size or len(self))

    @abstractmethod
    def keys(self, first: int, length: int) -> list[str]:
        """Give the keys of rows without reading their images."""

    @abstractmethod
    def reader(self, first: int, length: int, columns: tuple[str, ...]) -> Reader:
        """Make the reader of rows, with these extra columns."""


class ImageSource:
    """Images in a fixed order, each with a unique and stable key.

    Args:
        parts: what it is made of, in order.
        columns: extra columns to read along, where all parts have them.

    Attributes:
        columns: the extra columns of its rows (label, caption, ...).
        counted: whether source and spans know how many rows they have; not so of streams.
    """

    def __init__(self, parts: Sequence[Part], columns: Sequence[str]) -> None:
        self.parts = parts
        first, *others = [{field.name: field for field in part.columns} for part in parts]
        common = [field for name, field in first.items() if all(name in o and o[name] == field for o in others)]
        self.columns = tuple(field for field in common if field.name in columns)
        self.counted = all(part.counted for part in parts)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the names, sizes and times of the files: another digest is another source."""
        return hashlib.sha256("\0".join(part.stamp() for part in self.parts).encode()).hexdigest()

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def spans(self, size: int | None = None) -> Iterator[Span]:
        """Cut the source, in order, into spans of at most ``size`` rows.

        Without a size, spans are the pieces that the source comes in, such as tar shards; nothing is read to find them.
        """
        for number, part in enumerate(self.parts):
            for first, length in part.spans(size):
                yield Span(number, first, length)

    def reader(self, span: Span) -> Reader:
        """Make what reads a span in any process."""
        names = tuple(field.name for field in self.columns)
        return self.parts[span.part].reader(span.first, span.length, names)

    def rows(self, span: Span) -> Iterator[Row]:
        """Read a span: a row for every image, with the reason where it is skipped."""
        return self.reader(span)()

    def keys(self, span: Span) -> list[str]:
        """Give the keys of a span without reading its images."""
        return self.parts[span.part].keys(span.first, span.length)

    def all_keys(self) -> list[str]:
        """Give the keys of all images, in order."""
        return [key for span in self.spans(_KEYS) for key in self.keys(span)]


def cut(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut ``total`` rows into pieces (first, length)."""
    for first in range(0, total, size or 1):
        yield first, min(size, total - first)
