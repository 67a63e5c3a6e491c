"""Rows in any order, for shuffled training."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from gsqtok.data.sources.base import ImageSource, Reader, Row


class ByNumber:
    """The rows of a source by number, without extra columns.

    Image files and downloaded data sets of the hub are read where they are. Everything else is converted, once, to
    memory-mapped Arrow files that ``datasets`` keeps below HF_HOME; that takes about the source's size on disk, and a
    file that has changed is converted anew.

    Raises:
        ValueError: there are no rows.
    """

    def __init__(self, source: ImageSource) -> None:
        self._parts = source.parts
        if all(part.by_number for part in self._parts):
            self._table = None
            self._starts = list(itertools.accumulate(map(len, self._parts), initial=0))
        else:
            self._table = _converted([source.reader(span) for span in source.spans()])

    def __len__(self) -> int:
        return self._starts[-1] if self._table is None else len(self._table)

    def take(self, numbers: Sequence[int]) -> list[Row]:
        """Read the rows with these numbers."""
        if self._table is None:
            return [self._row(number) for number in numbers]
        batch = self._table[list(numbers)]
        columns = zip(batch["key"], batch["image"], batch["reason"], strict=True)
        return [Row(key, image and image["bytes"], {}, reason) for key, image, reason in columns]

    def _row(self, number: int) -> Row:
        part = bisect_right(self._starts, number) - 1
        (row,) = self._parts[part].reader(number - self._starts[part], 1, ())()
        return row


def _converted(readers: list[Reader]) -> Any:
    import datasets

    texts = {name: datasets.Value("string") for name in ("key", "reason")}
    features = datasets.Features({"image": datasets.Image(decode=False), **texts})
    try:  # the readers hold the files' names, sizes and times, by which the converted files are found again
        return datasets.Dataset.from_generator(_values, features=features, gen_kwargs={"readers": readers})
    except datasets.exceptions.DatasetGenerationError as error:
        raise (error.__cause__ or error) from None
    except ValueError:  # what datasets says of no rows at all
        raise ValueError("the source holds no image") from None


def _values(readers: list[Reader]) -> Iterator[dict[str, Any]]:
    for row in itertools.chain.from_iterable(reader() for reader in readers):
        image = None if row.data is None else {"bytes": row.data, "path": None}
        yield {"image": image, "key": row.key, "reason": row.reason}
