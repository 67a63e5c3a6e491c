"""Batches of images for training (shuffled, endless, restartable) and for evaluation (each once, in order)."""

from __future__ import annotations

import itertools
import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from gsqtok.data.decode import BrokenImageError, decode_image, decode_pixels
from gsqtok.data.rejects import RejectLog
from gsqtok.data.sampling import EpochSampler, epoch_seed, local_batch_size
from gsqtok.data.source import rows
from gsqtok.data.transforms import ImageTransform, to_tensor

if TYPE_CHECKING:
    import datasets

    AnyDataset = datasets.Dataset | datasets.IterableDataset

_logger = logging.getLogger("gsqtok.data")
_PREFETCH = 4  # batches each worker prepares ahead
_MAX_EMPTY_EPOCHS = 10  # an uneven division of shards may leave a reader without images for an epoch


class Sample(NamedTuple):
    """One image, ready to be batched.

    Attributes:
        pixels: uint8 (H, W, 3).
        key: the key of the image in its source.
        rejected: (key, reason) of the broken images in whose place this one stands.
    """

    pixels: np.ndarray
    key: str
    rejected: list[tuple[str, str]]


class ImageDataset(Dataset[Sample]):
    """Training images addressed by (epoch, index).

    The randomness of an image's crop and flip comes from (seed, epoch, index) alone: the same whatever the number of
    ranks and workers. In the place of a broken image stands the next readable one of the source, wrapping around.

    Args:
        source: what ``open_source`` gives without streaming.
        transform: makes all images the same size.
        seed: not negative.

    Raises:
        ValueError: the source is empty; on access: none of its images can be read.
    """

    def __init__(self, source: datasets.Dataset, transform: ImageTransform, seed: int = 0) -> None:
        if len(source) == 0:
            raise ValueError("the data set holds no image")
        self.source = source.select_columns(["image", "key"])
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: tuple[int, int]) -> Sample:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[tuple[int, int]]) -> list[Sample]:
        """Fetch a whole batch with one look-up."""
        batch = self.source[[index for _, index in positions]]
        return [
            self._sample(epoch, index, {"image": image, "key": key})
            for (epoch, index), image, key in zip(positions, batch["image"], batch["key"], strict=True)
        ]

    def _sample(self, epoch: int, index: int, row: dict[str, Any]) -> Sample:
        following = (self.source[(index + i) % len(self)] for i in range(1, len(self)))
        return _first_readable(
            itertools.chain([row], following), lambda row: self._pixels(row, epoch, index), len(self.source)
        )

    def _pixels(self, row: Mapping[str, Any], epoch: int, index: int) -> np.ndarray:
        generator = _generator(self.seed, epoch, index) if self.transform.random else None
        return self.transform.pixels(decode_pixels(row["image"]), generator)


class ImageStream(IterableDataset[Sample]):
    """Training images from a streamed source, epoch after epoch without end.

    The readers (workers of all ranks) share out the shards of the source where their number divides that of the
    shards; otherwise each reads all and keeps every n-th row. Shards are shuffled every epoch, and rows within a
    buffer. The order depends on the seed and on the numbers of ranks and workers; with the same three, resuming at
    ``start_step`` gives the batches of an uninterrupted run. The rows before it are read again, not decoded.

    In the place of a broken image stands the next readable one, which also keeps its own place: every batch takes
    the same number of rows, so what to skip does not depend on what could be read.

    Args:
        source: what ``open_source`` gives with streaming.
        transform: makes all images the same size.
        batch_size: the batch of this rank, which its ``DataLoader`` must use, too.
        seed: not negative.
        rank: of ``world_size``.
        world_size: number of ranks.
        start_step: the first batch to give out.
        shuffle_buffer: rows (encoded images) that each reader holds to shuffle them.
    """

    def __init__(
        self,
        source: datasets.IterableDataset,
        transform: ImageTransform,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        shuffle_buffer: int = 1000,
    ) -> None:
        self.source = source.select_columns(["image", "key"])
        self.transform = transform
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_step = start_step
        self.shuffle_buffer = shuffle_buffer

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples of this worker's batches.

        A ``DataLoader`` takes batches from its workers in turn, from the first one on; so that batch ``t`` comes from
        reader ``t % workers`` also after resuming, the readers are handed to the workers from ``start_step`` on.
        """
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        reader = (number + self.start_step) % workers
        batches_before = (self.start_step - reader + workers - 1) // workers
        endless = self._rows(self.rank * workers + reader, self.world_size * workers)
        ahead: deque[tuple[int, dict[str, Any]]] = deque()
        current = itertools.islice(endless, batches_before * self.batch_size, None)
        while True:
            epoch, row = ahead.popleft() if ahead else next(current)
            yield _first_readable(
                self._from(epoch, row, ahead, current), lambda row, epoch=epoch: self._pixels(row, epoch), None
            )

    def _from(
        self, epoch: int, row: dict[str, Any], ahead: deque[tuple[int, dict[str, Any]]], current: Iterator
    ) -> Iterator[dict[str, Any]]:
        """The row, then those after it, which stay in ``ahead`` for their own turn; up to the end of the next epoch."""
        yield row
        for i in itertools.count():
            if i == len(ahead):
                ahead.append(next(current))
            if ahead[i][0] > epoch + 1:
                return
            yield ahead[i][1]

    def _rows(self, reader: int, readers: int) -> Iterator[tuple[int, dict[str, Any]]]:
        from datasets.distributed import split_dataset_by_node

        empty = 0
        for epoch in itertools.count():
            shuffled = self.source.shuffle(seed=epoch_seed(self.seed, epoch), buffer_size=self.shuffle_buffer)
            row = None
            for row in rows(split_dataset_by_node(shuffled, reader, readers)):
                yield epoch, row
            empty = empty + 1 if row is None else 0
            if empty == _MAX_EMPTY_EPOCHS:
                raise ValueError(
                    f"no image for reader {reader} of {readers}: the source has too few; use fewer workers"
                )

    def _pixels(self, row: Mapping[str, Any], epoch: int) -> np.ndarray:
        key = zlib.crc32(row["key"].encode())
        generator = _generator(self.seed, epoch, key) if self.transform.random else None
        return self.transform.pixels(decode_pixels(row["image"]), generator)


def train_loader(
    source: AnyDataset,
    transform: ImageTransform,
    *,
    batch_size: int,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    workers: int = 0,
    shuffle_buffer: int = 1000,
) -> DataLoader:
    """Endless shuffled batches for one rank, beginning with batch ``start_step``.

    Each batch is a dict: ``image`` float32 (batch_size / world_size, 3, H, W) in [-1, 1], ``keys`` list[str], and
    ``rejected`` list[(key, reason)], the broken images met on the way, for a ``RejectLog``. The loader already
    divides the work among the ranks (do not let Accelerate divide it again) and leaves torch's global generator alone.

    Args:
        source: what ``open_source`` gives. Without streaming, batches depend on the seed and the step alone
            (``EpochSampler``); for streaming, see ``ImageStream``.
        transform: makes all images the same size.
        batch_size: the global batch, over all ranks.
        seed: of the order and of the transform.
        rank: of ``world_size``.
        world_size: number of ranks.
        start_step: number of batches already trained on.
        workers: processes that read and decode; 0: this one.
        shuffle_buffer: for streaming, rows that each worker holds to shuffle them.

    Raises:
        ValueError: see ``EpochSampler``; on iteration: images of different sizes, or no image can be read.
    """
    options = {
        "num_workers": workers,
        "collate_fn": collate,
        "pin_memory": torch.cuda.is_available(),
        "prefetch_factor": _PREFETCH if workers else None,
        "generator": torch.Generator(),
    }
    if hasattr(source, "__len__"):
        dataset = ImageDataset(source, transform, seed)
        sampler = EpochSampler(
            len(dataset), batch_size, rank=rank, world_size=world_size, seed=seed, start_step=start_step
        )
        return DataLoader(dataset, batch_sampler=sampler, **options)
    local_size = local_batch_size(batch_size, rank, world_size)
    if seed < 0 or start_step < 0:
        raise ValueError(f"seed and start_step must not be negative, got {seed} and {start_step}")
    stream = ImageStream(
        source,
        transform,
        batch_size=local_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        start_step=start_step,
        shuffle_buffer=shuffle_buffer,
    )
    return DataLoader(stream, batch_size=local_size, **options)


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Samples of one size -> {image: float32 (B, 3, H, W) in [-1, 1], keys: list[str], rejected: list[(key, reason)]}.

    Raises:
        ValueError: the images differ in size.
    """
    shapes = {sample.pixels.shape for sample in samples}
    if len(shapes) > 1:
        sizes = " and ".join(f"{width} x {height}" for height, width, _ in sorted(shapes)[:2])
        raise ValueError(f"the images of a batch differ in size ({sizes}): give the transform a size and a crop")
    return {
        "image": to_tensor(np.stack([sample.pixels for sample in samples])),
        "keys": [sample.key for sample in samples],
        "rejected": [pair for sample in samples for pair in sample.rejected],
    }


class EvalLoader:
    """Every image of a source once, in order; see ``eval_loader``.

    Attributes:
        rejects: the broken images met so far, logged as they are met.
    """

    def __init__(self, chunks: Callable[[], Iterator[_Chunk]]) -> None:
        self._chunks = chunks
        self.rejects = RejectLog()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rejected: list[tuple[str, str]] = []
        for chunk in self._chunks():
            self.rejects.add(chunk.rejected)
            rejected += chunk.rejected
            for batch in chunk.batches:
                yield {**batch, "rejected": rejected}
                rejected = []


def eval_loader(
    source: AnyDataset,
    transform: ImageTransform,
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    carry: Sequence[str] = (),
) -> EvalLoader:
    """Every image once, in the order of the source, without padding; broken ones are skipped and reported.

    Each batch is a dict: ``image`` float32 (b, 3, H, W) in [-1, 1] with b <= ``batch_size``, ``keys`` list[str],
    ``rejected`` list[(key, reason)] since the batch before, and a list for each column in ``carry``. A batch never
    mixes sizes: neighbours of the same size share one, so images of native size work. The loader's ``rejects`` holds
    all that was skipped, also what follows the last batch.

    Args:
        source: what ``open_source`` gives.
        transform: without random parts.
        batch_size: the largest batch of this rank.
        workers: processes (threads, for streaming) that decode; 0: this one.
        rank: of ``world_size``; without streaming, the ranks take consecutive stretches of the source.
        world_size: number of ranks.
        carry: further columns of the source to pass on, such as ("label",).

    Raises:
        ValueError: a random transform, or a rank out of range.
    """
    if transform.random:
        raise ValueError("evaluation takes every image as it is: use a transform without random crop or flip")
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    local_batch_size(world_size, rank, world_size)
    source = source.select_columns(["image", "key", *carry])
    if hasattr(source, "__len__"):
        first, last = (len(source) * r // world_size for r in (rank, rank + 1))
        chunks = _Chunks(source, range(first, last), transform, batch_size)
        loader = DataLoader(
            chunks,
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=_PREFETCH if workers else None,
            generator=torch.Generator(),
        )
        return EvalLoader(lambda: iter(loader))

    def stream() -> Iterator[_Chunk]:
        from datasets.distributed import split_dataset_by_node

        own = rows(split_dataset_by_node(source, rank, world_size))
        groups = iter(lambda: list(itertools.islice(own, batch_size)), [])
        return _map_ordered(lambda group: _chunk(group, transform), groups, workers)

    return EvalLoader(stream)


class _Chunk(NamedTuple):
    """What became of a stretch of rows: batches of one size each."""

    batches: list[dict[str, Any]]
    rejected: list[tuple[str, str]]


class _Chunks(Dataset[_Chunk]):
    """Consecutive stretches of ``batch_size`` rows."""

    def __init__(self, source: datasets.Dataset, span: range, transform: ImageTransform, batch_size: int) -> None:
        self.source = source
        self.starts = span[::batch_size]
        self.stop = span.stop
        self.transform = transform
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> _Chunk:
        start = self.starts[number]
        columns = self.source[start : min(start + self.batch_size, self.stop)]
        group = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return _chunk(group, self.transform)


def _chunk(group: Iterable[dict[str, Any]], transform: ImageTransform) -> _Chunk:
    read, rejected = [], []
    for row in group:
        try:
            read.append((transform.pixels(decode_image(row.pop("image"))), row))
        except BrokenImageError as error:
            rejected.append((row["key"], str(error)))
    batches = []
    for _, run in itertools.groupby(read, key=lambda pair: pair[0].shape):
        pixels, others = zip(*run, strict=True)
        columns = {name: [row[name] for row in others] for name in others[0]}
        batches.append({"image": to_tensor(np.stack(pixels)), "keys": columns.pop("key"), **columns})
    return _Chunk(batches, rejected)


def _map_ordered(function: Callable[[Any], _Chunk], arguments: Iterable[Any], threads: int) -> Iterator[_Chunk]:
    """``map`` over threads (Pillow decodes without the interpreter's lock), a bounded number of items ahead.

    A stream has one reader: worker processes would each have to read all of it to keep the order.
    """
    if threads == 0:
        yield from map(function, arguments)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque = deque()
        for argument in arguments:
            ahead.append(pool.submit(function, argument))
            if len(ahead) == _PREFETCH * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _as_it_is(item: Any) -> Any:
    return item


def _generator(seed: int, epoch: int, number: int) -> np.random.Generator:
    """An independent stream for each (seed, epoch, number), three times as quick to make as ``default_rng``."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, number]))


def _first_readable(
    candidates: Iterable[dict[str, Any]], pixels: Callable[[dict[str, Any]], np.ndarray], count: int | None
) -> Sample:
    rejected: list[tuple[str, str]] = []
    for row in candidates:
        try:
            return Sample(pixels(row), row["key"], rejected)
        except BrokenImageError as error:
            rejected.append((row["key"], str(error)))
    key, reason = rejected[0]
    raise ValueError(f"none of {count or len(rejected)} images can be read; the first: {key} ({reason})")
