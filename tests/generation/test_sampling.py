"""Samples follow the prior's probabilities, and cost the same at every position."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gsqtok.generation.prior import Prior, PriorModelConfig, Vocabulary
from gsqtok.generation.sampling import SamplingOptions, draw, sample


@pytest.fixture
def make():
    def make(head, grid=(1, 2), size=3):
        torch.manual_seed(0)
        prior = Prior(
            PriorModelConfig(head=head, embedding="tables", width=64, layers=1, head_layers=1),
            Vocabulary("a", 2, size, grid, classes=2),
        )
        prior.embedding.last.data *= 10
        return prior.eval()

    return make


@pytest.mark.parametrize("head", ["depth", "parallel"])
@torch.no_grad()
def test_samples_are_as_frequent_as_they_are_probable(head, make):
    prior, number = make(head), 20_000
    grids = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 1, 2, 2)
    for label in (None, 1):
        labels = None if label is None else torch.full((number,), label)
        drawn = sample(prior, number, labels=labels, generator=torch.Generator().manual_seed(0)).flatten(1)
        counts = torch.bincount((drawn * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81)
        expected = number * (-prior(grids, None if label is None else labels[:81]).sum((1, 2, 3))).exp()
        assert ((counts - expected) ** 2 / expected).sum() < 140  # chi squared of 80 degrees: 1 in 30,000 is beyond


@pytest.mark.parametrize("head", ["depth", "parallel", "masked"])
def test_the_most_probable_tokens_need_no_luck(head, make):
    prior, options = make(head, (3, 3), 7), SamplingOptions(temperature=0, steps=4)
    first, second = (sample(prior, 2, options=options, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert first.shape == (2, 3, 3, 2)
    assert 0 <= first.min() <= first.max() < 7
    if head != "masked":  # which hides tokens at random
        assert torch.equal(first, second)


def test_a_seed_repeats_a_draw(make):
    for head in ("depth", "masked"):
        draws = [sample(make(head), 8, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])


@torch.no_grad()
def test_guidance_exaggerates_what_the_class_changes(make):
    prior = make("depth", (1, 1))
    one = torch.tensor([1])
    expected = []
    for guidance in (1.0, 3.0):
        state = prior.begin(2, (1, 1), torch.tensor([1, 2]))  # the class, and any class
        x = prior.step(state, None)
        logits = []

        def keep(values, logits=logits):
            logits.append(values)
            return torch.zeros(2, dtype=torch.int64)

        prior.head.pick(x, prior.embedding, state.outputs, keep)
        conditional, unconditional = logits[0].float()
        expected.append((unconditional + guidance * (conditional - unconditional)).softmax(-1))
    for guidance, probabilities in zip((1.0, 3.0), expected, strict=True):
        options = SamplingOptions(guidance=guidance)
        draws = sample(
            prior, 4000, labels=one.expand(4000), options=options, generator=torch.Generator().manual_seed(0)
        )
        shares = torch.bincount(draws[:, 0, 0, 0], minlength=3) / 4000
        torch.testing.assert_close(shares, probabilities, atol=0.03, rtol=0)
    with pytest.raises(ValueError, match="guidance needs classes"):
        sample(prior, 1, options=SamplingOptions(guidance=2))


def test_top_k_top_p_and_temperature():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)

    def shares(**options):
        return torch.bincount(draw(logits, SamplingOptions(**options), generator)[0], minlength=4) / 20_000

    torch.testing.assert_close(shares(top_k=2), torch.tensor([0.625, 0.375, 0, 0]), atol=0.02, rtol=0)
    torch.testing.assert_close(shares(top_p=0.6), torch.tensor([0.625, 0.375, 0, 0]), atol=0.02, rtol=0)
    torch.testing.assert_close(shares(top_p=0.5), torch.tensor([1.0, 0, 0, 0]), atol=0, rtol=0)
    squared = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    torch.testing.assert_close(shares(temperature=0.5), squared / squared.sum(), atol=0.02, rtol=0)
    assert torch.equal(draw(logits, SamplingOptions(temperature=0))[0], torch.zeros(20_000, dtype=torch.int64))


@pytest.mark.parametrize("values", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"steps": 0}, {"top_k": 0}])
def test_options_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        SamplingOptions(**values)


def test_a_position_costs_the_same_wherever_it_is(make):
    """But for attention itself, which reads the keys so far: all other products are those of one position."""
    prior = make("depth", (8, 8))
    state, costs = prior.begin(1, (8, 8)), []
    with torch.no_grad():
        for _ in range(64):
            with FlopCounterMode(display=False) as counter:
                prior.step(state, torch.zeros(1, 2, dtype=torch.int64))
            products = counter.get_flop_counts()["Global"]
            costs.append(sum(cost for name, cost in products.items() if "attention" not in str(name)))
    assert costs[0] > 0
    assert set(costs) == {costs[0]}
