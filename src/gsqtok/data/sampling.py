"""Which images make up which training batch: a function of the seed and the step number alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


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
        for step in itertools.count(self.start_step):
            first = step * self.batch_size + self.rank * self.local_size
            batch = []
            for position in range(first, first + self.local_size):
                epoch, offset = divmod(position, self.length)
                if epoch != shuffled_epoch:
                    generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
                    shuffled_epoch, permutation = epoch, torch.randperm(self.length, generator=generator)
                batch.append((epoch, int(permutation[offset])))
            yield batch


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
