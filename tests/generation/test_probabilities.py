"""A prior as a coder: exact, tile by tile, and as short as its cross-entropy says."""

import math

import numpy as np
import pytest
import torch

from gsqtok.generation import probabilities
from gsqtok.generation.coder import DamagedError
from gsqtok.generation.prior import Prior, PriorModelConfig
from gsqtok.generation.probabilities import PriorCoder
from gsqtok.generation.sampling import sample

pytest.importorskip("constriction")


def grids_of(prior, *shapes, seed=0):
    """Drawn from the prior itself, so that it has something to say about them."""
    draw = torch.Generator().manual_seed(seed)
    return [sample(prior, 1, grid=shape, generator=draw)[0].numpy() for shape in shapes]


def decoded(coder, data, grids):
    return coder.decode([(part, grid.shape[:2]) for part, grid in zip(data, grids, strict=True)])


def test_grids_of_any_size_round_trip(tiny_prior):
    grids = grids_of(tiny_prior, (3, 4), (1, 1), (2, 4), (3, 3))
    rng = np.random.default_rng(0)
    grids.append(rng.integers(0, 64, (7, 9, 2)))  # nine tiles, of four shapes
    coder = PriorCoder(tiny_prior)
    data = coder.encode(grids)
    assert all(np.array_equal(a, b) for a, b in zip(decoded(coder, data, grids), grids, strict=True))


def test_bytes_are_within_a_percent_of_the_cross_entropy(tiny_prior):
    tiny_prior.vocabulary.__dict__["grid"] = (16, 16)
    grid = grids_of(tiny_prior, (16, 16))[0]
    with torch.no_grad():
        bits = tiny_prior(torch.from_numpy(grid)[None]).sum().item() / math.log(2)
    assert bits < 0.95 * 6 * grid.size
    size = 8 * len(PriorCoder(tiny_prior).encode([grid])[0])
    assert 0.99 * bits <= size <= 1.01 * bits + 32  # a stream ends with a word


def test_threads_and_batches_change_nothing(tiny_prior, monkeypatch):
    grids = grids_of(tiny_prior, *[(3, 4)] * 5)
    coder = PriorCoder(tiny_prior)
    data = coder.encode(grids)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(probabilities, "_BATCH", 3)
        monkeypatch.setattr(probabilities, "_ENTRIES", 5 * 128)
        assert PriorCoder(tiny_prior).encode(grids) == data
        assert all(np.array_equal(a, b) for a, b in zip(decoded(coder, data, grids), grids, strict=True))
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(decoded(coder, data[2:3], grids[2:3])[0], grids[2])  # alone in its batch


def test_damage_is_of_one_grid(tiny_prior):
    grids = grids_of(tiny_prior, *[(3, 4)] * 3)
    coder = PriorCoder(tiny_prior)
    data = coder.encode(grids)
    data[1] = data[1][:-3]
    first, second, third = decoded(coder, data, grids)
    assert isinstance(second, DamagedError)
    assert np.array_equal(first, grids[0])
    assert np.array_equal(third, grids[2])
    for part in (b"", b"\1\2", b"\xff" * 64):
        (result,) = coder.decode([(part, (9, 9))])
        assert isinstance(result, DamagedError) or result.shape == (9, 9, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_and_a_cpu_read_each_other(tiny_prior):
    grids = grids_of(tiny_prior, (3, 4), (3, 4), (7, 9))
    here, there = PriorCoder(tiny_prior), PriorCoder(tiny_prior, "cuda")
    data = there.encode(grids)
    assert here.encode(grids) == data
    for coder in (here, there):
        assert all(np.array_equal(a, b) for a, b in zip(decoded(coder, data, grids), grids, strict=True))


def test_a_masked_prior_is_refused(tiny_prior):
    masked = Prior(PriorModelConfig(head="masked", width=64, layers=1, head_layers=1), tiny_prior.vocabulary)
    with pytest.raises(ValueError, match="no order to decode in"):
        PriorCoder(masked)
