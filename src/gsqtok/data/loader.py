"""Batches of images for training (shuffled, endless, restartable) and for evaluation (each once, in order)."""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from gsqtok.data.decode import BrokenImageError, decode_row
from gsqtok.data.decoded import DecodedImages, DecodedRow
from gsqtok.data.sampling import CropMix, CropSampler, EpochSampler, epoch_seed, local_batch_size
from gsqtok.data.skipped import SkipLog
from gsqtok.data.sources import ByNumber, ImageSource, Reader, Row, Span
from gsqtok.data.transforms import ImageTransform, to_tensor
from gsqtok.data.workers import end_with_parent

_PREFETCH = 4  # batches each worker prepares ahead
_MAX_EMPTY_EPOCHS = 10  # an uneven division of shards may leave a reader without images for an epoch


class Sample(NamedTuple):
    """One image, ready to be batched.

    Attributes:
        pixels: uint8 (H, W, 3).
        key: the key of the image in its source.
        skipped: (key, reason) of the images in whose place this one stands.
    """

    pixels: np.ndarray
    key: str
    skipped: list[tuple[str, str]]


class ImageDataset(Dataset[Sample]):
    """Training images addressed by (epoch, index), or (epoch, index, number of the transform).

    The randomness of an image's crop and flip comes from (seed, epoch, index) alone: the same whatever the number of
    ranks and workers. In the place of a skipped image stands the next readable one of the source, wrapping around.

    Args:
        source: see ``open_source``; its rows are read by number. Or the images, decoded before.
        transform: makes all images the same size; several to choose from.
        seed: not negative.

    Raises:
        ValueError: the source is empty; on access: none of its images can be read.
    """

    def __init__(
        self,
        source: ImageSource | DecodedImages,
        transform: ImageTransform | Sequence[ImageTransform],
        seed: int = 0,
    ) -> None:
        self.rows = source if isinstance(source, DecodedImages) else ByNumber(source)
        self.transforms = [transform] if isinstance(transform, ImageTransform) else transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: tuple[int, ...]) -> Sample:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[tuple[int, ...]]) -> list[Sample]:
        """Fetch a whole batch with one look-up."""
        rows: Sequence[Row | DecodedRow] = self.rows.take([position[1] for position in positions])
        return [self._sample(row, *position) for position, row in zip(positions, rows, strict=True)]

    def _sample(self, row: Row | DecodedRow, epoch: int, index: int, number: int = 0) -> Sample:
        following = (self.rows.take([(index + i) % len(self)])[0] for i in range(1, len(self)))
        generator = partial(_generator, self.seed, epoch, index)
        candidates = itertools.chain([row], following)
        return _first_readable(candidates, self.transforms[number], lambda row: generator(), len(self))


@dataclass(eq=False)
class ImageStream(IterableDataset[Sample]):
    """Training images read in the order of their files, epoch after epoch without end.

    The readers (workers of all ranks) divide the spans of the source where their number divides that of the spans;
    otherwise each reads all and keeps every n-th row. Spans are shuffled every epoch, and rows within a buffer. The
    order depends on the seed and on the numbers of ranks and workers; with the same three, resuming at ``start_step``
    gives the batches of an uninterrupted run. The rows before it are read again, not decoded.

    In the place of a skipped image stands the next readable one, which also keeps its own place: every batch takes
    the same number of rows, so what to leave out does not depend on what could be read.

    Attributes:
        batch_size: the batch of this rank, which its ``DataLoader`` must use, too.
        shuffle_buffer: rows (encoded images) that each reader holds to shuffle them; for the others, see
            ``train_loader``.
    """

    source: ImageSource
    transform: ImageTransform
    batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    start_step: int = 0
    shuffle_buffer: int = 1000

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
        ahead: deque[tuple[int, Row]] = deque()
        current = itertools.islice(endless, batches_before * self.batch_size, None)
        while True:
            epoch, row = ahead.popleft() if ahead else next(current)
            generator = partial(self._generator, epoch)
            yield _first_readable(self._from(epoch, row, ahead, current), self.transform, generator)

    def _from(
        self, epoch: int, row: Row, ahead: deque[tuple[int, Row]], current: Iterator[tuple[int, Row]]
    ) -> Iterator[Row]:
        """Yield the row, then those after it, which stay in ``ahead`` for their own turn, to the next epoch's end."""
        yield row
        for i in itertools.count():
            if i == len(ahead):
                ahead.append(next(current))
            if ahead[i][0] > epoch + 1:
                return
            yield ahead[i][1]

    def _rows(self, reader: int, readers: int) -> Iterator[tuple[int, Row]]:
        spans, empty = list(self.source.spans()), 0
        for epoch in itertools.count():
            order = np.random.default_rng(epoch_seed(self.seed, epoch)).permutation(len(spans))
            own = _divided(self.source, [spans[i] for i in order], reader, readers)
            row = None
            for row in _shuffled(own, self.shuffle_buffer, np.random.default_rng((self.seed, epoch, reader))):
                yield epoch, row
            empty = empty + 1 if row is None else 0
            if empty == _MAX_EMPTY_EPOCHS:
                raise ValueError(
                    f"no image for reader {reader} of {readers}: the source has too few; use fewer workers"
                )

    def _generator(self, epoch: int, row: Row) -> np.random.Generator:
        return _generator(self.seed, epoch, zlib.crc32(row.key.encode()))


def _divided(source: ImageSource, spans: Sequence[Span], part: int, parts: int) -> Iterator[Row]:
    """Whole spans for each part where they divide evenly; else every part reads all, and keeps every n-th row."""
    whole = len(spans) % parts == 0
    rows = itertools.chain.from_iterable(map(source.rows, spans[part::parts] if whole else spans))
    return rows if whole else itertools.islice(rows, part, None, parts)


def _shuffled(rows: Iterable[Row], size: int, generator: np.random.Generator) -> Iterator[Row]:
    """Shuffle in a buffer of ``size`` rows."""
    held: list[Row] = []
    for row in rows:
        if len(held) < size:
            held.append(row)
            continue
        place = generator.integers(size)
        yield held[place]
        held[place] = row
    generator.shuffle(held)
    yield from held


def train_loader(
    source: ImageSource | DecodedImages,
    transform: ImageTransform | CropMix,
    *,
    batch_size: int,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    workers: int = 0,
    streaming: bool = False,
    shuffle_buffer: int = 1000,
) -> DataLoader[Any]:
    """Endless shuffled batches for one rank, beginning with batch ``start_step``.

    Each batch is a dict: ``image`` uint8 (batch_size / world_size, H, W, 3), for ``to_float`` once they are on the
    device (bytes travel four times as fast), ``keys`` list[str], and
    ``skipped`` list[(key, reason)], the skipped images met on the way, for a ``SkipLog``. The loader already
    divides the images among the ranks (do not let Accelerate divide them again) and leaves torch's global generator
    alone.

    Args:
        source: see ``open_source``; or the images, decoded before.
        transform: makes all images the same size; a mix of crops makes those of each batch so.
        batch_size: the global batch, over all ranks; of a mix, at its ``size``.
        seed: of the order and of the transform.
        rank: of ``world_size``.
        world_size: number of ranks.
        start_step: number of batches already trained on.
        workers: processes that read and decode; 0: this one.
        streaming: read files in their order, shuffled in a buffer (``ImageStream``). Otherwise batches depend on the
            seed and the step alone (``EpochSampler``), for which what is not image files is first converted.
        shuffle_buffer: for streaming, rows that each worker holds to shuffle them.

    Raises:
        ValueError: see ``EpochSampler``; on iteration: images of different sizes, or no image can be read.
    """
    options = _options(workers) | {"collate_fn": collate}
    if not streaming:
        place = {"rank": rank, "world_size": world_size, "seed": seed, "start_step": start_step}
        if isinstance(transform, CropMix):
            mixed = ImageDataset(source, transform.transforms, seed)
            return DataLoader(mixed, batch_sampler=CropSampler(len(mixed), batch_size, transform, **place), **options)
        dataset = ImageDataset(source, transform, seed)
        return DataLoader(dataset, batch_sampler=EpochSampler(len(dataset), batch_size, **place), **options)
    if isinstance(source, DecodedImages) or isinstance(transform, CropMix):
        raise ValueError("streaming reads encoded images in their files' order, and gives crops of one size")
    local_size = local_batch_size(batch_size, rank, world_size)
    if seed < 0 or start_step < 0:
        raise ValueError(f"seed and start_step must not be negative, got {seed} and {start_step}")
    stream = ImageStream(source, transform, local_size, seed, rank, world_size, start_step, shuffle_buffer)
    return DataLoader(stream, batch_size=local_size, **options)


def _options(workers: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
        "prefetch_factor": _PREFETCH if workers else None,
        "worker_init_fn": end_with_parent,
        "generator": torch.Generator(),
    }


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Samples of one size -> {image: uint8 (B, H, W, 3), keys: list[str], skipped: list[(key, reason)]}.

    Raises:
        ValueError: the images differ in size.
    """
    shapes = {sample.pixels.shape for sample in samples}
    if len(shapes) > 1:
        sizes = " and ".join(f"{width} x {height}" for height, width, _ in sorted(shapes)[:2])
        raise ValueError(f"the images of a batch differ in size ({sizes}): give the transform a size and a crop")
    return {
        "image": torch.from_numpy(np.stack([sample.pixels for sample in samples])),
        "keys": [sample.key for sample in samples],
        "skipped": [pair for sample in samples for pair in sample.skipped],
    }


def _generator(seed: int, epoch: int, number: int) -> np.random.Generator:
    """An independent stream for each (seed, epoch, number), three times as quick to make as ``default_rng``."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, number]))


def _first_readable(
    candidates: Iterable[Row | DecodedRow],
    transform: ImageTransform,
    generator: Callable[[Any], np.random.Generator],
    count: int | None = None,
) -> Sample:
    skipped: list[tuple[str, str]] = []
    for row in candidates:
        try:
            image, *resized = row.images() if isinstance(row, DecodedRow) else [decode_row(row)]
            pixels = transform.pixels(image, generator(row) if transform.random else None, resized)
            return Sample(pixels, row.key, skipped)
        except BrokenImageError as error:
            skipped.append((row.key, str(error)))
    key, reason = skipped[0]
    raise ValueError(f"none of {count or len(skipped)} images can be read; the first: {key} ({reason})")


class EvalLoader:
    """Every image of a source once, in order; see ``eval_loader``.

    Attributes:
        skipped: the skipped images met so far, logged as they are met.
        in_order: whether the ranks, one after another, have the images in the order of the source.
    """

    def __init__(self, decoded: Iterable[_Decoded], in_order: bool) -> None:
        self.skipped = SkipLog()
        self.in_order = in_order
        self._decoded = decoded

    def __iter__(self) -> Iterator[dict[str, Any]]:
        skipped: list[tuple[str, str]] = []
        for decoded in self._decoded:
            self.skipped.add(decoded.skipped)
            skipped += decoded.skipped
            for batch in decoded.batches:
                yield {**batch, "skipped": skipped}
                skipped = []


def eval_loader(
    source: ImageSource,
    transform: ImageTransform,
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    keys: Container[str] | None = None,
) -> EvalLoader:
    """Every image once, in the order of the source, without padding; what cannot be read is skipped and reported.

    Each batch is a dict: ``image`` float32 (b, 3, H, W) in [-1, 1] with b <= ``batch_size``, ``keys`` list[str],
    ``skipped`` list[(key, reason)] since the batch before, and a list for each extra column of the source. A batch
    never mixes sizes: neighbours of the same size share one, so images of native size work. The loader's ``skipped``
    holds all that was skipped, also what follows the last batch.

    Args:
        source: see ``open_source``.
        transform: without random parts.
        batch_size: the largest batch of this rank.
        workers: processes that read and decode; 0: this one.
        rank: of ``world_size``; the ranks take consecutive parts of the source, those of a stream every n-th image.
        world_size: number of ranks.
        keys: take these images alone.

    Raises:
        ValueError: a random transform, or a rank out of range.
    """
    if transform.random:
        raise ValueError("evaluation takes every image as it is: use a transform without random crop or flip")
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    local_batch_size(world_size, rank, world_size)
    decoded = DataLoader(
        _Decoding(transform, keys, tuple(field.name for field in source.columns)),
        sampler=_Groups(source, batch_size, rank, world_size, keys),  # so workers are given what they read, no source
        batch_size=None,
        collate_fn=as_it_is,
        **_options(workers),
    )
    return EvalLoader(decoded, source.counted)


class _Decoded(NamedTuple):
    """What became of a group of rows: batches of one size each, and the skipped images."""

    batches: list[dict[str, Any]]
    skipped: list[tuple[str, str]]


class _Groups:
    """The rows of one rank in groups of ``size``; a group is a list of readers."""

    def __init__(self, source: ImageSource, size: int, rank: int, world_size: int, keys: Container[str] | None) -> None:
        self.source, self.size, self.rank, self.world_size, self.keys = source, size, rank, world_size, keys

    def __iter__(self) -> Iterator[list[Reader]]:
        if not self.source.counted:  # one process must read a stream to keep its order
            rows = _divided(self.source, list(self.source.spans()), self.rank, self.world_size)
            while read := list(itertools.islice(rows, self.size)):
                yield [partial(iter, read)]
            return
        group: list[Reader] = []
        free, nothing = self.size, True
        for part, first, length in self._own_spans():
            nothing = False
            while length:
                span = Span(part, first, min(length, free))
                first, length, free = first + span.length, length - span.length, free - span.length
                if self.keys is None or any(key in self.keys for key in self.source.keys(span)):
                    group.append(self.source.reader(span))
                if not free:
                    yield group
                    group, free = [], self.size
        if nothing and self.world_size == 1:
            raise ValueError("the source holds no image")
        yield group

    def _own_spans(self) -> Iterator[Span]:
        if self.world_size == 1:  # without a need to know how many images there are
            yield from self.source.spans(self.size)
            return
        first, last = (len(self.source) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        start = 0
        for span in self.source.spans(self.size):
            own = range(max(first - start, 0), min(last - start, span.length))
            start += span.length
            if own:
                yield Span(span.part, span.first + own.start, len(own))


@dataclass
class _Decoding(Dataset[_Decoded]):
    transform: ImageTransform
    keys: Container[str] | None
    columns: tuple[str, ...]

    def __getitem__(self, group: list[Reader]) -> _Decoded:
        read, skipped = [], []
        for row in itertools.chain.from_iterable(reader() for reader in group):
            if self.keys is not None and row.key not in self.keys:
                continue
            try:
                read.append((self.transform.pixels(decode_row(row)), row))
            except BrokenImageError as error:
                skipped.append((row.key, str(error)))
        batches = []
        for _, run in itertools.groupby(read, key=lambda pair: pair[0].shape):
            pixels, rows = zip(*run, strict=True)
            extra = {name: [row.columns[name] for row in rows] for name in self.columns}
            batches.append({"image": to_tensor(np.stack(pixels)), "keys": [row.key for row in rows], **extra})
        return _Decoded(batches, skipped)


def as_it_is(item: Any) -> Any:
    """What a ``DataLoader`` hands on: it would make tensors of the rest."""
    return item
