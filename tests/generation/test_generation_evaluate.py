"""Predictability against brute force."""

import itertools
import math

import pytest
import torch

from gsqtok.generation.evaluate import _bound, frechet_distance
from gsqtok.generation.prior import Prior, PriorModelConfig, Vocabulary


@torch.no_grad()
def test_the_bound_of_the_masked_head_is_the_mean_over_all_orders():
    """All orders of four tokens, each token predicted from those before it; against random numbers of hidden ones."""
    torch.manual_seed(0)
    config = PriorModelConfig(head="masked", embedding="tables", width=64, layers=1, head_layers=1)
    prior = Prior(config, Vocabulary("a", 2, 3, (1, 2)))
    prior.embedding.last.data *= 10
    tokens = torch.tensor([0, 2, 1, 1]).view(1, 1, 2, 2)
    orders = list(itertools.permutations(range(4)))
    nats = 0.0
    for order in orders:
        for place, token in enumerate(order):
            hidden = torch.ones(4, dtype=torch.bool)
            hidden[list(order[:place])] = False
            nats += prior(tokens, hidden=hidden.view(tokens.shape)).flatten()[token].item() / len(orders)
    draw = torch.Generator().manual_seed(0)
    many = _bound(prior, tokens.expand(20_000, 1, 2, 2), None, draw).sum((1, 2, 3)).mean().item()
    assert many == pytest.approx(nats, rel=0.02)
    assert abs(nats - 4 * math.log(3)) > 0.5  # far from what knowing nothing costs


def test_the_frechet_distance_of_images_to_themselves_is_nothing():
    class Means:
        dim, suffix = 3, "_means"

        def to(self, device):
            return self

        def __call__(self, images):
            from gsqtok.evaluation.features import Features

            return Features(images.float().mean((2, 3)))

    torch.manual_seed(0)
    images = [2 * torch.rand(10, 3, 8, 8) - 1 for _ in range(3)]
    device, seen = torch.device("cpu"), []
    assert frechet_distance(images, images, Means(), device, seen.append) == pytest.approx(0, abs=1e-4)
    assert sum(seen) == 30
    darker = [image - 0.2 for image in images]
    shift = 3 * (0.1 * 255) ** 2  # the squared distance of the means
    assert frechet_distance([d.clamp(-1, 1) for d in darker], images, Means(), device) == pytest.approx(shift, rel=0.25)
