"""Bits where they are needed: how many nested groups each position keeps, chosen under a budget for the whole.

A position's groups are chosen by what they cost and what error they leave: the k that is least in error + multiplier *
bits (Everett 1963; Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers"). The bits
include those of the map of all k, by the code length of an adaptive model that a decoder can follow.

Where errors come from: `measured_errors` decodes an image G times; `ErrorPredictor` reads them off the latent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsqtok.tokenizer.model import ImageTokenizer

BISECTIONS = 24
START = 0.25  # of a count in the map's model: below 1, since most contexts are of few symbols


class MapModel:
    """Probabilities of a map's numbers, learnt while it is read in rows from above, left to right.

    Each number is one of 1 to G; its context is the sum of those to the left and above (at the edges the other one
    twice, at the corner none). Counts start anew with each map, so that a map decodes by itself.
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.counts = np.full((2 * groups + 1, groups), START)

    def context(self, counts: NDArray[np.int64], row: int, column: int) -> int:
        """Context of a place, from what has been read of the map (h, w)."""
        if row == column == 0:
            return 0
        left = int(counts[row, column - 1]) if column else int(counts[row - 1, column])
        above = int(counts[row - 1, column]) if row else left
        return left + above

    def bits(self, context: int) -> NDArray[np.float64]:
        """Bits that each number from 1 to G would cost: (G,)."""
        seen = self.counts[context]
        cost: NDArray[np.float64] = np.log2(seen.sum() / seen)
        return cost

    def update(self, context: int, number: int) -> None:
        """Learn a number in its context."""
        self.counts[context, number - 1] += 1


def map_bits(counts: Tensor, groups: int) -> float:
    """Code length of a map of group counts (h, w), each from 1 to ``groups``, in bits."""
    numbers, model, total = counts.cpu().numpy().astype(np.int64), MapModel(groups), 0.0
    for row, column in np.ndindex(*numbers.shape):
        context = model.context(numbers, row, column)
        total += float(model.bits(context)[numbers[row, column] - 1])
        model.update(context, int(numbers[row, column]))
    return total


class Allocation(NamedTuple):
    """Groups chosen for an image.

    Attributes:
        counts: (h, w) int64, from 1 to G.
        bits: of the tokens that are kept and of the map.
    """

    counts: Tensor
    bits: float


def choose_groups(errors: Tensor, bits_per_group: float, multiplier: float) -> Allocation:
    """Choose each position's groups, in the order in which the map is coded, at the map's present prices.

    Args:
        errors: (h, w, G), the error of each position with its first 1 to G groups, summed over its pixels.
        bits_per_group: log2(V).
        multiplier: error that a bit must save to be spent.
    """
    costs = errors.detach().double().cpu().numpy()
    height, width, groups = costs.shape
    token_bits = bits_per_group * np.arange(1, groups + 1)
    counts, model, total = np.zeros((height, width), np.int64), MapModel(groups), 0.0
    for row, column in np.ndindex(height, width):
        context = model.context(counts, row, column)
        bits = token_bits + model.bits(context)
        chosen = int(np.argmin(costs[row, column] + multiplier * bits))
        counts[row, column] = chosen + 1
        total += float(bits[chosen])
        model.update(context, chosen + 1)
    return Allocation(torch.from_numpy(counts), total)


def allocate(errors: Sequence[Tensor], bits_per_group: float, mean_bits: float) -> list[Allocation]:
    """Choose the groups of all positions of some images such that a position costs ``mean_bits`` on average, or less.

    All images share one multiplier, so that bits go to the images that need them. It is found by bisection.

    Args:
        errors: of each image, (h, w, G); see ``choose_groups``.
        bits_per_group: log2(V).
        mean_bits: bits of a position, the map's included.

    Raises:
        ValueError: a budget below one group for each position and a map that says so.
    """
    positions = sum(error[..., 0].numel() for error in errors)

    def chosen(multiplier: float) -> list[Allocation]:
        return [choose_groups(error, bits_per_group, multiplier) for error in errors]

    def fits(found: list[Allocation]) -> bool:
        return sum(allocation.bits for allocation in found) <= mean_bits * positions

    if fits(found := chosen(0.0)):
        return found
    largest = max(float(error.max()) for error in errors)
    low, high = 0.0, max(largest, 1e-12) / bits_per_group * 2
    best = chosen(high)
    if not fits(best):
        least = sum(allocation.bits for allocation in best) / positions
        raise ValueError(f"mean_bits must be at least {least:.4g}, one group a position and the map; got {mean_bits:g}")
    for _ in range(BISECTIONS):
        middle = math.sqrt(max(low, high * 1e-9) * high) if low else high / 16
        if fits(found := chosen(middle)):
            best, high = found, middle
        else:
            low = middle
        if low and high / low < 1.001:
            break
    return best


@torch.no_grad()
def measured_errors(tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    """Squared error of each position's pixels, where all positions keep as many groups: (B, h, w, G).

    Errors of a position with its neighbours' other choices are taken to be the same. Decodes G times.

    Args:
        tokenizer: with nested groups.
        images: (B, 3, H, W) in [-1, 1], H and W multiples of the factor.
    """
    factor, quantizer = tokenizer.factor, tokenizer.quantizer
    assert factor is not None
    tokens = tokenizer.encode(images)
    groups = getattr(quantizer, "groups", 1)
    found = []
    for k in range(1, groups + 1):
        wrong = (tokenizer.decode(tokens[..., : quantizer.tokens_of(k)]) - images).square().sum(1)
        found.append(wrong.unflatten(2, (-1, factor)).unflatten(1, (-1, factor)).sum((2, 4)))
    return torch.stack(found, -1)


class ErrorPredictor(nn.Module):
    """Predicts the errors of each position from the latent, so that nothing need be decoded to choose its groups.

    Two convolutions see a position and its neighbours. They predict the logarithm of the error with all groups, and by
    how much more each smaller number leaves, so that errors fall with every group.

    Args:
        dim: channels D of the latent.
        groups: G.
        width: hidden channels.
    """

    def __init__(self, dim: int, groups: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(dim, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 1), nn.SiLU(),
            nn.Conv2d(width, groups, 1),
        )  # fmt: skip

    def logarithms(self, latent: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, h, w, G), the logarithm of each error."""
        last, *steps = self.layers(latent.float()).unbind(1)
        falling = [last]
        for step in steps:
            falling.append(falling[-1] + nn.functional.softplus(step))
        return torch.stack(falling[::-1], -1)

    @torch.no_grad()
    def forward(self, latent: Tensor) -> Tensor:
        """(B, D, h, w) -> errors (B, h, w, G), as `measured_errors` would measure them."""
        return self.logarithms(latent).exp()

    @classmethod
    def fitted(
        cls, latents: Tensor, errors: Tensor, *, steps: int = 500, batch: int = 16, seed: int = 0
    ) -> ErrorPredictor:
        """Train one on latents (N, D, h, w) and what was measured of them (N, h, w, G)."""
        fork = torch.random.fork_rng(devices=[latents.device] if latents.is_cuda else [])
        with torch.enable_grad(), fork:
            torch.manual_seed(seed)
            predictor = cls(latents.shape[1], errors.shape[-1]).to(latents.device)
            target = errors.clamp_min(1e-6).log()
            last = predictor.layers[-1]
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            with torch.no_grad():
                last.bias[0] = target[..., -1].mean()
            optimizer = torch.optim.AdamW(predictor.parameters(), lr=3e-3)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
            for _ in range(steps):
                rows = torch.randint(len(latents), (min(batch, len(latents)),), device=latents.device)
                loss = (predictor.logarithms(latents[rows]) - target[rows]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return predictor.eval()
