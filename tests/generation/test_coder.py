"""Coders: what goes in comes out, in as many bits as the probabilities say."""

import numpy as np
import pytest
import torch

from gsqtok.generation.coder import (
    AdaptiveFrequencies,
    DamagedError,
    Decoder,
    Encoder,
    StaticFrequencies,
    decode_map,
    encode_map,
)
from gsqtok.tokenizer.allocation import map_bits

pytest.importorskip("constriction")


def skewed(rng, shape, size):
    return np.minimum((rng.exponential(size / 6, shape)).astype(np.int64), size - 1)


def test_a_thousand_random_tables():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        size, number = int(rng.integers(2, 300)), int(rng.integers(1, 20))
        tables = rng.integers(0, 2 ** int(rng.integers(1, 20)), (number, size))
        tables[:, 0] += tables.sum(1) == 0
        tokens = np.array([rng.choice(np.flatnonzero(table)) for table in tables])
        encoder = Encoder()
        encoder.each(tokens, tables)
        encoder.same(tokens, tables[0] + 1)
        decoder = Decoder(encoder.finish())
        assert np.array_equal(decoder.each(tables), tokens)
        assert np.array_equal(decoder.same(number, tables[0] + 1), tokens)


@pytest.mark.parametrize("size", [17, 65_536])
def test_files_are_as_long_as_the_cross_entropy_says(size):
    rng = np.random.default_rng(0)
    table = rng.integers(1, 2**12, size)
    tokens = rng.choice(size, 50_000, p=table / table.sum())
    encoder = Encoder()
    encoder.same(tokens, table)
    bits = -np.log2(table[tokens] / table.sum()).sum()
    assert bits <= 8 * len(encoder.finish()) <= 1.01 * bits


@pytest.mark.parametrize("size", [16, 5000])
def test_frequencies_round_trip(size):
    rng = np.random.default_rng(1)
    grids = [skewed(rng, (h, w, 3), size) for h, w in ((9, 7), (1, 1), (16, 16))]
    shapes = [grid.shape[:2] for grid in grids]
    for coder in (StaticFrequencies.of(grids, size), AdaptiveFrequencies(3, size)):
        data = coder.encode(grids)
        decoded = coder.decode(list(zip(data, shapes, strict=True)))
        assert all(np.array_equal(a, b) for a, b in zip(decoded, grids, strict=True))
        alone = coder.decode([(data[2], shapes[2])])  # whatever else is in the file
        assert np.array_equal(alone[0], grids[2])


def test_static_frequencies_come_within_a_percent_of_the_entropy():
    rng = np.random.default_rng(2)
    grid = skewed(rng, (200, 200, 2), 256)
    static = StaticFrequencies.of([grid], 256)
    entropy = 0.0
    for group in range(2):
        counts = np.bincount(grid[..., group].ravel(), minlength=256)
        entropy -= (counts[counts > 0] * np.log2(counts[counts > 0] / counts.sum())).sum()
    assert entropy <= 8 * len(static.encode([grid])[0]) <= 1.01 * entropy


def test_adaptive_frequencies_learn():
    rng = np.random.default_rng(3)
    grid = skewed(rng, (64, 64, 1), 64)
    assert 8 * len(AdaptiveFrequencies(1, 64).encode([grid])[0]) < 0.95 * 6 * grid.size


def test_bytes_that_nobody_encoded_are_refused_or_decode_to_tokens():
    rng = np.random.default_rng(4)
    coder, refused = AdaptiveFrequencies(2, 10), 0
    for length in (*range(1, 9), *[40] * 30):
        (decoded,) = coder.decode([(rng.bytes(length), (6, 6))])
        if isinstance(decoded, DamagedError):
            refused += 1
        else:
            assert decoded.shape == (6, 6, 2)
            assert 0 <= decoded.min() <= decoded.max() < 10
    assert refused > 5


@pytest.mark.parametrize("levels", [np.zeros((1, 4), np.uint8), np.full((1, 4), 255, np.uint8), np.zeros(4, np.uint8)])
def test_hostile_tables_are_refused(levels):
    with pytest.raises(DamagedError):
        StaticFrequencies(levels)


def smooth_map(shape, groups, seed=0):
    """Groups that neighbours have in common, as in images."""
    noise = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    coarse = torch.nn.functional.avg_pool2d(noise, 5, 1, 2, count_include_pad=False)[0, 0]
    return (1 + (coarse - coarse.min()) / (coarse.max() - coarse.min() + 1e-6) * groups).long().clamp(1, groups)


@pytest.mark.parametrize(("shape", "groups"), [((48, 40), 4), ((32, 32), 8), ((1, 1), 2), ((7, 1), 3)])
def test_maps_round_trip_in_the_bits_of_their_model(shape, groups):
    counts = smooth_map(shape, groups)
    encoder = Encoder()
    encode_map(encoder, counts.numpy(), groups)
    data = encoder.finish()
    assert np.array_equal(decode_map(Decoder(data), shape, groups), counts.numpy())
    bits = map_bits(counts, groups)
    assert bits - 1 <= 8 * len(data) <= 1.01 * bits + 64  # words of 32 bits
    if shape[0] > 30:
        assert bits < 0.6 * counts.numel() * np.log2(groups), "neighbours predict it"


@pytest.mark.parametrize("way", ["static", "adaptive"])
def test_groups_that_are_left_out_cost_a_map_and_no_more(way):
    rng, size = np.random.default_rng(5), 64
    grids = [skewed(rng, (h, w, 4), size) for h, w in ((40, 32), (3, 5), (1, 1))]
    maps = [smooth_map(grid.shape[:2], 3, seed) for seed, grid in enumerate(grids)]  # the fourth group nowhere
    for grid, counts in zip(grids, maps, strict=True):
        grid[np.arange(4) >= counts.numpy()[..., None]] = -1
    coder = AdaptiveFrequencies(4, size, True) if way == "adaptive" else StaticFrequencies.of(grids, size, True)
    data = coder.encode(grids)
    decoded = coder.decode([(part, grid.shape[:2]) for part, grid in zip(data, grids, strict=True)])
    assert all(np.array_equal(a, b) for a, b in zip(decoded, grids, strict=True))
    if way == "static":
        own = [grids[0][..., g][grids[0][..., g] >= 0] for g in range(4)]
        tables = [f / f.sum() for f in coder.frequencies]
        bits = map_bits(maps[0], 4) - sum(np.log2(table[part]).sum() for table, part in zip(tables, own, strict=True))
        assert bits <= 8 * len(data[0]) <= 1.01 * bits
    for cut in (b"", data[0][:8], rng.bytes(len(data[0]) // 4 * 4)):
        (other,) = coder.decode([(cut, grids[0].shape[:2])])
        assert isinstance(other, DamagedError) or not np.array_equal(other, grids[0])
