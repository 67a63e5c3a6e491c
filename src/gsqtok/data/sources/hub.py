"""Data sets of the Hugging Face hub, downloaded or streamed by ``datasets``."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import datasets

from gsqtok.available import asking_the_hub
from gsqtok.data.sources.base import UNKNOWN, Part, Reader, Row
from gsqtok.data.sources.listing import SplitError
from gsqtok.data.sources.parquet import image_and_extra_columns, image_row
from gsqtok.io import one_line

_ROWS = 64  # read at once while streaming
_Named = tuple[str, str | None, bool]  # what to load: data set, split, whether to stream


def open_hub(name: str, split: str | None, prefix: str, streaming: bool) -> list[Part]:
    """Open a data set; its keys are ``<split>-<row>``, while streaming ``<split>-<shard>-<row>``.

    Args:
        name: ``owner/name``.
        split: needed where there are several.
        prefix: of the keys.
        streaming: read over the network instead of downloading first.

    Raises:
        FileNotFoundError: there is no such data set within reach.
        ValueError: no column of images, or several splits and none named.
    """
    _opened.cache_clear()  # what the hub has now
    _undecoded.cache_clear()
    dataset, split_found = _opened(name, split, streaming)
    prefix = f"{prefix}{split_found}-"
    named = (name, split, streaming)
    if not streaming:
        return [HubDataset(named, dataset, prefix)]
    return [HubDataset(named, dataset, f"{prefix}{shard:05d}-", shard) for shard in range(dataset.num_shards)]


class HubDataset(Part):
    """A downloaded data set, memory-mapped; with a number, a shard of a streamed one."""

    def __init__(self, named: _Named, dataset: Any, prefix: str, shard: int | None = None) -> None:
        self._named, self._prefix, self._shard = named, prefix, shard
        self._image, self.columns = image_and_extra_columns(dataset.features.arrow_schema, named[0])
        about = (named, prefix, dataset.features, getattr(dataset, "num_rows", None), dataset.info.download_checksums)
        self._description = "\0".join(map(str, about))
        self.counted = self.by_number = shard is None

    def stamp(self) -> str:
        return self._description

    def __len__(self) -> int:
        if not self.counted:
            raise TypeError(f"how many images {self._named[0]} has is not known while it is streamed")
        return len(_opened(*self._named)[0])

    def spans(self, size: int | None) -> Iterator[tuple[int, int]]:
        return super().spans(size) if self.counted else iter([(0, UNKNOWN)])

    def keys(self, first: int, length: int) -> list[str]:
        if not self.counted:
            return [row.key for row in self.reader(first, length, ())()]
        return [f"{self._prefix}{row:06d}" for row in range(first, first + length)]

    def reader(self, first: int, length: int, columns: tuple[str, ...]) -> Reader:
        columns = (self._image, *columns)
        if self._shard is not None:
            return functools.partial(_stream, self._named, self._shard, self._prefix, columns)
        return functools.partial(_read, self._named, first, self.keys(first, length), columns)


def _read(named: _Named, first: int, keys: list[str], columns: tuple[str, ...]) -> Iterator[Row]:
    yield from _rows(_undecoded(named, columns)[first : first + len(keys)], keys, columns)


def _stream(named: _Named, shard: int, prefix: str, columns: tuple[str, ...]) -> Iterator[Row]:
    dataset = _undecoded(named, columns)
    rows = itertools.count()
    for batch in dataset.shard(dataset.num_shards, shard).iter(_ROWS):  # all rows, also inside a DataLoader's worker
        yield from _rows(batch, [f"{prefix}{next(rows):06d}" for _ in batch[columns[0]]], columns)


def _rows(batch: dict[str, list[Any]], keys: list[str], columns: Sequence[str]) -> Iterator[Row]:
    for key, image, *values in zip(keys, *(batch[name] for name in columns), strict=True):
        yield image_row(key, image, dict(zip(columns[1:], values, strict=True)))


@functools.lru_cache(4)
def _undecoded(named: _Named, columns: tuple[str, ...]) -> Any:
    dataset = _opened(*named)[0].select_columns(list(columns))
    return dataset.cast_column(columns[0], datasets.Image(decode=False))


@functools.lru_cache(4)
def _opened(name: str, split: str | None, streaming: bool) -> tuple[Any, str]:
    """Load a data set, and say of which split it is."""
    try:
        with asking_the_hub():
            loaded = datasets.load_dataset(name, split=split, streaming=streaming)
    except ValueError as error:
        raise ValueError(f"hub data set {name!r}: {one_line(error)}") from error
    except (OSError, datasets.exceptions.DatasetsError) as error:  # no network, no such data set, no permission
        searched = f"no file or folder {name!r} here, and no hub data set {name!r} within reach"
        raise FileNotFoundError(f"{searched}: {one_line(error)}") from error
    if isinstance(loaded, dict):
        if len(loaded) > 1:
            raise SplitError(f"hub data set {name!r}", list(loaded))
        ((split, loaded),) = loaded.items()
    if loaded.features is None:
        raise ValueError(f"hub data set {name!r} does not declare its columns: open it without streaming")
    return loaded, str(split)
