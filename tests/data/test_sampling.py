from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsqtok.data import EpochSampler

lengths, seeds = st.integers(1, 40), st.integers(0, 2**31)


def take(count, *args, **options):
    return list(islice(EpochSampler(*args, **options), count))


@given(lengths, st.integers(1, 5), st.integers(1, 6), seeds)
def test_ranks_make_up_the_batch(length, world_size, local, seed):
    batch = world_size * local
    whole = take(8, length, batch, seed=seed)
    parts = [take(8, length, batch, rank=rank, world_size=world_size, seed=seed) for rank in range(world_size)]
    assert [[*chain(*slices)] for slices in zip(*parts, strict=True)] == whole
    assert {len(slice_) for part in parts for slice_ in part} == {local}


@given(lengths, st.integers(1, 50), st.integers(0, 30), seeds)
def test_resuming_gives_the_tail(length, batch, start, seed):
    assert take(5, length, batch, seed=seed, start_step=start) == take(start + 5, length, batch, seed=seed)[start:]


@given(lengths, st.integers(1, 50), seeds)
def test_every_epoch_is_a_permutation(length, batch, seed):
    positions = [*chain(*take(3 * length // batch + 1, length, batch, seed=seed))]
    epochs = [positions[i : i + length] for i in range(0, 3 * length, length)]
    for number, epoch in enumerate(epochs):
        assert {e for e, _ in epoch} == {number}
        assert sorted(index for _, index in epoch) == list(range(length))


def test_epochs_and_seeds_differ():
    orders = [[i for _, i in batch] for seed in (0, 1) for batch in take(3, 50, 50, seed=seed)]
    assert len({tuple(order) for order in orders}) == 6


def test_far_start_is_immediate():
    ((epoch, _), *_) = take(1, 1000, 10, start_step=10**12)[0]
    assert epoch == 10**10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "no image"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 5, "world_size": 2}, "multiple of the 2 ranks, got 5"),
        ({"rank": 1}, "rank"),
        ({"rank": -1}, "rank"),
        ({"seed": -1}, "seed"),
        ({"start_step": -1}, "start_step"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(**{"length": 10, "batch_size": 4, **arguments})
