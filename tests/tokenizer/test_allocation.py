"""Groups where they are needed: against exhaustive search, and the map's code length against a decoder of it."""

import itertools
import math

import numpy as np
import pytest
import torch

from gsqtok.quantizers import quantizer_options
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig
from gsqtok.tokenizer.allocation import (
    ErrorPredictor,
    MapModel,
    allocate,
    choose_groups,
    map_bits,
    measured_errors,
)

BITS = 8.0


def errors_of(shape, groups=4, seed=0):
    """Errors that fall with every group, some positions a hundred times as hard as others."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.exp(3 * torch.randn(*shape, 1, generator=generator))
    return hard * torch.rand(*shape, groups, generator=generator).cumsum(-1).flip(-1)


def test_without_a_price_all_groups_are_kept():
    (chosen,) = choose_groups(errors_of((5, 6))[None], BITS, 0.0)
    assert (chosen.counts == 4).all()
    assert chosen.bits == pytest.approx(5 * 6 * 4 * BITS + map_bits(chosen.counts, 4))


def test_the_map_can_be_read_back():
    """Its length is that of an ideal arithmetic code by a model which a decoder, too, can keep."""
    counts = torch.randint(1, 5, (9, 7), generator=torch.Generator().manual_seed(0))
    encoder, decoder, total = MapModel(4), MapModel(4), 0.0
    written, read = counts.numpy()[None], np.zeros((1, 9, 7), np.int64)
    for row, column in np.ndindex(9, 7):
        there, here = (model.context(seen, row, column) for model, seen in ((encoder, written), (decoder, read)))
        assert there == here
        probabilities = 2.0 ** -decoder.bits(here)[0]
        assert probabilities.sum() == pytest.approx(1)
        read[0, row, column] = written[0, row, column]
        total -= math.log2(probabilities[read[0, row, column] - 1])
        for model in (encoder, decoder):
            model.update(here, read[:, row, column])
    assert total == pytest.approx(map_bits(counts, 4))


def test_images_beside_each_other_are_chosen_as_alone():
    errors = torch.stack([errors_of((6, 5), seed=seed) for seed in range(3)])
    together = choose_groups(errors, BITS, 0.02)
    assert len({tuple(found.counts.flatten().tolist()) for found in together}) == 3
    counts = [found.counts for found in together]
    assert map_bits(torch.stack(counts), 4) == pytest.approx(sum(map_bits(own, 4) for own in counts))
    for own, found in zip(errors, together, strict=True):
        (alone,) = choose_groups(own[None], BITS, 0.02)
        assert torch.equal(alone.counts, found.counts)
        assert alone.bits == pytest.approx(found.bits)


def test_flat_maps_cost_little_and_random_ones_their_entropy():
    assert map_bits(torch.full((32, 32), 3), 4) < 0.03 * 32 * 32
    random = torch.randint(1, 5, (64, 64), generator=torch.Generator().manual_seed(0))
    assert 2.0 < map_bits(random, 4) / 64**2 < 2.1


@pytest.mark.parametrize("mean_bits", [12.0, 16.0, 24.0])
def test_a_budget_is_kept_and_used(mean_bits):
    errors = [errors_of((12, 12), seed=seed) for seed in range(3)]
    found = allocate(errors, BITS, mean_bits)
    mean = sum(allocation.bits for allocation in found) / (3 * 144)
    assert mean_bits - 0.3 < mean <= mean_bits
    for error, allocation in zip(errors, found, strict=True):
        kept = BITS * allocation.counts.sum().item()
        assert allocation.bits == pytest.approx(kept + map_bits(allocation.counts, 4))
        assert error.shape[:2] == allocation.counts.shape


def test_hardly_a_better_choice_exists():
    """All maps of five positions: none of as few bits leaves 5 % less error."""
    errors = errors_of((1, 5), groups=3)
    (found,) = allocate([errors], BITS, 16.0)

    def error_of(counts):
        return sum(errors[0, place, count - 1].item() for place, count in enumerate(counts))

    best = min(
        error_of(counts)
        for counts in itertools.product((1, 2, 3), repeat=5)
        if BITS * sum(counts) + map_bits(torch.tensor([counts]), 3) <= found.bits
    )
    assert error_of(found.counts[0].tolist()) <= 1.05 * best


def test_varied_groups_beat_fixed_ones_where_errors_vary():
    errors = [errors_of((16, 16), seed=seed) for seed in range(2)]
    found = allocate(errors, BITS, 2 * BITS)
    left = sum(error.gather(-1, a.counts[..., None] - 1).sum() for error, a in zip(errors, found, strict=True))
    assert left < 0.8 * sum(error[..., 1].sum() for error in errors)


def test_a_budget_that_is_too_small():
    with pytest.raises(ValueError, match=r"mean_bits must be at least 8.*one group a position"):
        allocate([errors_of((8, 8))], BITS, 7.9)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return ImageTokenizer(
        TokenizerConfig(
            latent_dim=6,
            channels=32,
            multipliers=(1, 1),
            encoder_blocks=0,
            decoder_blocks=0,
            encoder_middle_blocks=0,
            decoder_middle_blocks=1,
            quantizer=quantizer_options("gsq", groups=3, codebook_size=16, nested="uniform"),
        )
    ).eval()


def test_errors_are_those_of_the_images(tokenizer):
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    errors = measured_errors(tokenizer, images)
    assert errors.shape == (2, 4, 6, 3)
    for k in range(1, 4):
        wrong = (tokenizer.decode(tokenizer.encode(images, groups=k)) - images).square()
        torch.testing.assert_close(errors[..., k - 1].sum(), wrong.sum())
        torch.testing.assert_close(errors[1, 2, 3, k - 1], wrong[1, :, 4:6, 6:8].sum())


def test_errors_are_predicted_from_the_latent():
    """Errors that the latent tells: on others of their kind the predictor is right within a few percent."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(40, 6, 8, 8, generator=generator)
    hard = latents[:, 0].exp().unsqueeze(-1)
    errors = hard * torch.tensor([8.0, 3.0, 1.0])
    predictor = ErrorPredictor.fitted(latents[:32], errors[:32], steps=200)
    found = predictor(latents[32:])
    assert (found[..., :-1] >= found[..., 1:]).all()
    assert (found.log() - errors[32:].log()).abs().mean() < 0.1
    again = ErrorPredictor.fitted(latents[:32], errors[:32], steps=200)
    assert torch.equal(again(latents[32:]), found), "the same from the same seed"
