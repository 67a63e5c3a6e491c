from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsqtok.data import CropMix, EpochSampler, ImageTransform
from gsqtok.data.sampling import CropSampler

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


SIZES, SHARES = (64, 128, 256), (0.07, 0.45, 0.48)
MIX = CropMix(tuple(ImageTransform(size, "random") for size in SIZES), SHARES, 256)
factors = [16, 4, 1]


def mixed(count, length, batch, **options):
    return list(islice(CropSampler(length, batch, MIX, **options), count))


@given(seeds, st.integers(0, 10**6), st.integers(1, 3000))
def test_every_size_has_its_share_of_any_stretch(seed, first, count):
    """The golden ratio's multiples: off by less than three batches, where draws would be by the root of the number."""
    kinds = MIX.of_batches(first, count, seed).tolist()
    for kind, share in enumerate(SHARES):
        assert abs(kinds.count(kind) - share * count) < 3


def test_crops_depend_on_the_seed():
    assert MIX.of_batches(0, 100, 0).tolist() != MIX.of_batches(0, 100, 1).tolist()
    double = CropMix(MIX.transforms, tuple(2 * share for share in SHARES), 256)
    assert double.of_batches(0, 100, 0).tolist() == MIX.of_batches(0, 100, 0).tolist()


@given(lengths, st.integers(1, 3), st.integers(1, 3), st.integers(0, 30), seeds)
def test_batches_of_crops_follow_each_other(length, world_size, local, start, seed):
    """All ranks have the same crops, equally many pixels a batch, every epoch whole; resuming gives the tail."""
    batch = world_size * local
    whole = mixed(start + 5, length, batch, seed=seed)
    parts = [mixed(start + 5, length, batch, rank=r, world_size=world_size, seed=seed) for r in range(world_size)]
    assert [[*chain(*slices)] for slices in zip(*parts, strict=True)] == whole
    assert mixed(5, length, batch, start_step=start, seed=seed) == whole[start:]
    for found in whole:
        (kind,) = {kind for *_, kind in found}
        assert len(found) == batch * factors[kind]
    images = [(epoch, index) for found in whole for epoch, index, _ in found]
    assert images == [*chain(*take(len(images), length, 1, seed=seed))]


def test_a_mix_of_one_size_changes_nothing():
    mix = CropMix(MIX.transforms[2:], (1.0,), 256)
    found = list(islice(CropSampler(7, 3, mix, seed=2, start_step=4), 9))
    assert [[(epoch, index) for epoch, index, _ in batch] for batch in found] == take(9, 7, 3, seed=2, start_step=4)
