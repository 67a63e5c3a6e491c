"""Which images make up which training batch: a function of the seed and the step number alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler

from gsqtok.data.transforms import ImageTransform

_GOLDEN = (5**0.5 - 1) / 2
_AHEAD = 1024  # batches whose crops are chosen at once


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), without end; a batch sampler for ``ImageDataset``.

    Every epoch is a permutation of the data set, and the permutations follow each other without a gap: a batch may
    begin in one epoch and end in the next, so no image is dropped, and a data set smaller than the batch works.
    The position is therefore the step number alone, whatever the number of ranks.

    Args:
        length: number of images.
        batch_size: the global batch, over all ranks.
        rank: the slice of each batch to give out, ``rank`` of ``world_size``; in the order of the ranks the slices
            make up the batch.
        world_size: number of ranks; divides ``batch_size``.
        seed: not negative.
        start_step: the first batch to give out, to resume.

    Raises:
        ValueError: an empty data set, a batch that the ranks cannot share evenly, a negative seed or step.
    """

    def __init__(
        self, length: int, batch_size: int, *, rank: int = 0, world_size: int = 1, seed: int = 0, start_step: int = 0
    ) -> None:
        if length < 1:
            raise ValueError("the data set holds no image")
        self.length = length
        self.local_size = local_batch_size(batch_size, rank, world_size)
        self.batch_size = batch_size
        self.rank = rank
        if seed < 0 or start_step < 0:
            raise ValueError(f"seed and start_step must not be negative, got {seed} and {start_step}")
        self.seed = seed
        self.start_step = start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this rank's part of the batches ``start_step``, ``start_step + 1``, ..."""
        shuffled_epoch, permutation = -1, torch.empty(0, dtype=torch.int64)
        for first, count in self._slices():
            batch = []
            for position in range(first, first + count):
                epoch, offset = divmod(position, self.length)
                if epoch != shuffled_epoch:
                    generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
                    shuffled_epoch, permutation = epoch, torch.randperm(self.length, generator=generator)
                batch.append((epoch, int(permutation[offset])))
            yield batch

    def _slices(self) -> Iterator[tuple[int, int]]:
        """Yield where this rank's part of each batch begins in the row of all epochs, and its length."""
        for step in itertools.count(self.start_step):
            yield step * self.batch_size + self.rank * self.local_size, self.local_size


@dataclass(frozen=True)
class CropMix:
    """Batches of different crop sizes: each has one of them, and all have equally many pixels.

    Which size a batch has depends on its number and the seed alone. The sizes follow each other as the multiples of the
    golden ratio fall into the shares, modulo one: over any run of batches, each size has its share to within a few,
    and none comes in clusters (random draws would differ by the square root of their number).

    Attributes:
        transforms: random crops, one for each size.
        shares: of the batches; they need not add up to 1.
        size: of the crops that ``batch_size`` counts, a multiple of all others: a batch of crops of half the size has
            four times as many.
    """

    transforms: tuple[ImageTransform, ...]
    shares: tuple[float, ...]
    size: int

    def of_batches(self, first: int, count: int, seed: int) -> np.ndarray:
        """Which transform the batches ``first``, ``first + 1``, ... have: int64 (count,)."""
        start = epoch_seed(seed, 0) / 2**32
        edges = np.cumsum(self.shares) / sum(self.shares)
        places = (start + np.arange(first, first + count) * _GOLDEN) % 1
        return np.searchsorted(edges[:-1], places, side="right")

    def factors(self) -> np.ndarray:
        """How many times as many images as ``batch_size`` a batch has, for each transform: int64."""
        return np.array([(self.size // transform.size) ** 2 for transform in self.transforms if transform.size])


class CropSampler(EpochSampler):
    """Batches of (epoch, index, number of the transform) for a ``CropMix``; otherwise an ``EpochSampler``.

    Args:
        length: number of images.
        batch_size: the global batch at ``mix.size``.
        mix: the crops.
        options: those of ``EpochSampler``.
    """

    def __init__(self, length: int, batch_size: int, mix: CropMix, **options: int) -> None:
        super().__init__(length, batch_size, **options)
        self.mix = mix

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:  # type: ignore[override]
        """Yield this rank's part of the batches ``start_step``, ``start_step + 1``, ..."""
        for batch, kind in zip(super().__iter__(), self._kinds(), strict=False):
            yield [(epoch, index, kind) for epoch, index in batch]

    def _kinds(self) -> Iterator[int]:
        for first in itertools.count(self.start_step, _AHEAD):
            yield from self.mix.of_batches(first, _AHEAD, self.seed).tolist()

    def _slices(self) -> Iterator[tuple[int, int]]:
        factors = self.mix.factors()
        before = int(factors[self.mix.of_batches(0, self.start_step, self.seed)].sum())
        for kind in self._kinds():
            factor = int(factors[kind])
            yield before * self.batch_size + self.rank * self.local_size * factor, self.local_size * factor
            before += factor


def epoch_seed(seed: int, epoch: int) -> int:
    """A well-mixed 32-bit seed for an epoch."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def local_batch_size(batch_size: int, rank: int, world_size: int) -> int:
    """The part of a global batch that one rank takes.

    Raises:
        ValueError: the ranks cannot share the batch evenly, or there is no such rank.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in [0, {world_size}), got {rank}")
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch_size must be a positive multiple of the {world_size} ranks, got {batch_size}")
    return batch_size // world_size
