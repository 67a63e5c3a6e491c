"""Bits where they are needed: how many nested groups each position keeps, chosen under a budget for the whole.

A position's groups are chosen by what they cost and what error they leave: the k that is least in error + multiplier *
bits (Everett 1963; Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers"). The bits
include those of the map of all k, by the code length of an adaptive model that a decoder can follow.

Where errors come from: `measured_errors` decodes an image G times; `ErrorPredictor` reads them off the latent.
`GroupAllocator` is such a predictor with a price of a bit, both found on some images, for all that come later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gsqtok.io import atomic_write, one_line
from gsqtok.quantizers import Quantizer
from gsqtok.tokenizer.model import ImageTokenizer

BISECTIONS = 24
FORMAT = "gsqtok-allocation-1"


class MapModel:
    """Frequencies of a map's numbers, learnt while it is read in rows from above, left to right; of maps at once.

    Each number is one of 1 to G; its context is the sum of those to the left and above (at the edges the other one
    twice, at the corner none). Frequencies start anew with each map, so that a map decodes by itself, and are whole
    numbers, so that an encoder and a decoder have the same.

    Args:
        groups: G.
        maps: number of maps that are read at once.
    """

    SEEN = 4  # by how much a number's frequency grows; it starts at 1, since most contexts are of few numbers

    def __init__(self, groups: int, maps: int = 1) -> None:
        self._rows = np.arange(maps)
        self._frequencies = np.ones((maps, 2 * groups + 1, groups), np.int64)

    def context(self, counts: NDArray[np.int64], row: int, column: int) -> NDArray[np.int64]:
        """Contexts (maps,) of a place, from what has been read of the maps (maps, h, w)."""
        if row == column == 0:
            return np.zeros(len(counts), np.int64)
        left = counts[:, row, column - 1] if column else counts[:, row - 1, column]
        above = counts[:, row - 1, column] if row else left
        context: NDArray[np.int64] = left + above
        return context

    def frequencies(self, context: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frequencies of the numbers from 1 to G in each map's context: (maps, G)."""
        return self._frequencies[self._rows, context]

    def bits(self, context: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bits that each number would cost: (maps, G)."""
        seen = self.frequencies(context)
        cost: NDArray[np.float64] = np.log2(seen.sum(1, keepdims=True) / seen)
        return cost

    def update(self, context: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
        """Learn the maps' numbers (maps,) in their contexts."""
        self._frequencies[self._rows, context, numbers - 1] += self.SEEN


def map_bits(counts: Tensor, groups: int) -> float:
    """Code length of a map of group counts (h, w), each from 1 to ``groups``, in bits; of several (B, h, w), of all."""
    return bits_of_maps(counts.reshape(-1, *counts.shape[-2:]), groups).sum().item()


def bits_of_maps(counts: Tensor, groups: int) -> Tensor:
    """Likewise of each map (B, h, w) by itself: (B,) float64, on the CPU."""
    numbers = counts.cpu().numpy().astype(np.int64)
    maps, model, total = np.arange(len(numbers)), MapModel(groups, len(numbers)), np.zeros(len(numbers))
    for row, column in np.ndindex(*numbers.shape[1:]):
        context = model.context(numbers, row, column)
        total += model.bits(context)[maps, numbers[:, row, column] - 1]
        model.update(context, numbers[:, row, column])
    return torch.from_numpy(total)


def kept_bits(quantizer: Quantizer, tokens: Tensor) -> Tensor:
    """Bits of tokens (B, h, w, G) of which -1 are left out, with the map of which are: (B,) float64 on the CPU."""
    counts = (tokens >= 0).sum(-1)
    return quantizer.bits_of(1) * counts.sum((1, 2)).cpu().double() + bits_of_maps(counts, tokens.shape[-1])


def check_mean_groups(tokenizer: ImageTokenizer, mean_groups: float) -> None:
    """Raise ValueError where a tokenizer's positions cannot keep so many groups on average."""
    groups = tokenizer.quantizer.tokens_per_position
    if tokenizer.quantizer.nested is None:
        raise ValueError("bits by position need nested groups: train with quantizer nested: uniform")
    if not 1 < mean_groups <= groups:
        raise ValueError(f"mean_groups must be above 1 and at most {groups}, got {mean_groups:g}")


class Allocation(NamedTuple):
    """Groups chosen for an image.

    Attributes:
        counts: (h, w) int64, from 1 to G.
        bits: of the tokens that are kept and of the map.
    """

    counts: Tensor
    bits: float


def choose_groups(errors: Tensor, bits_per_group: float, multiplier: float) -> list[Allocation]:
    """Choose each position's groups, in the order in which the map is coded, at the map's present prices.

    Args:
        errors: (B, h, w, G), the error of each position with its first 1 to G groups, summed over its pixels.
        bits_per_group: log2(V).
        multiplier: error that a bit must save to be spent.
    """
    costs = errors.detach().double().cpu().numpy()
    images, height, width, groups = costs.shape
    token_bits, rows = bits_per_group * np.arange(1, groups + 1), np.arange(images)
    counts, model, total = np.zeros((images, height, width), np.int64), MapModel(groups, images), np.zeros(images)
    for row, column in np.ndindex(height, width):
        context = model.context(counts, row, column)
        bits = token_bits + model.bits(context)
        chosen = np.argmin(costs[:, row, column] + multiplier * bits, 1)
        counts[:, row, column] = chosen + 1
        total += bits[rows, chosen]
        model.update(context, chosen + 1)
    return [Allocation(torch.from_numpy(own), float(bits)) for own, bits in zip(counts, total, strict=True)]


def allocate(errors: Sequence[Tensor], bits_per_group: float, mean_bits: float) -> list[Allocation]:
    """Choose the groups of all positions of some images such that a position costs ``mean_bits`` on average, or less.

    All images share one multiplier, so that bits go to the images that need them; see ``best_multiplier``.

    Args:
        errors: of each image, (h, w, G); see ``choose_groups``.
        bits_per_group: log2(V).
        mean_bits: bits of a position, the map's included.

    Raises:
        ValueError: a budget below one group for each position and a map that says so.
    """
    return _choose_all(errors, bits_per_group, best_multiplier(errors, bits_per_group, mean_bits))


def best_multiplier(errors: Sequence[Tensor], bits_per_group: float, mean_bits: float) -> float:
    """The least price of a bit at which the budget is kept, by bisection; arguments as for ``allocate``."""
    positions = sum(error[..., 0].numel() for error in errors)

    def spent(multiplier: float) -> float:
        return sum(found.bits for found in _choose_all(errors, bits_per_group, multiplier)) / positions

    if spent(0.0) <= mean_bits:
        return 0.0
    largest = max(float(error.max()) for error in errors)
    low, high = 0.0, max(largest, 1e-12) / bits_per_group * 2
    if (least := spent(high)) > mean_bits:
        raise ValueError(f"mean_bits must be at least {least:.4g}, one group a position and the map; got {mean_bits:g}")
    for _ in range(BISECTIONS):
        middle = math.sqrt(max(low, high * 1e-9) * high) if low else high / 16
        if spent(middle) <= mean_bits:
            high = middle
        else:
            low = middle
        if low and high / low < 1.001:
            break
    return high


def _choose_all(errors: Sequence[Tensor], bits_per_group: float, multiplier: float) -> list[Allocation]:
    """`choose_groups` of images of any sizes: those of one size together."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, error in enumerate(errors):
        by_shape.setdefault(tuple(error.shape), []).append(number)
    found: dict[int, Allocation] = {}
    for numbers in by_shape.values():
        chosen = choose_groups(torch.stack([errors[number] for number in numbers]), bits_per_group, multiplier)
        found |= dict(zip(numbers, chosen, strict=True))
    return [found[number] for number in range(len(errors))]


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


class GroupAllocator(nn.Module):
    """Chooses the groups of each position from the latent, at one price of a bit for all images.

    ``tokenizer.encode(images, groups=allocator)`` then needs no budget and no other image. See ``fitted`` and ``load``.

    Args:
        predictor: of the errors.
        multiplier: the price: error that a bit must save to be spent.
        facts: ``tokenizer`` (its ``tokens_fingerprint``), ``dim``, ``groups``, ``bits_per_group``, ``mean_groups``.
    """

    def __init__(self, predictor: ErrorPredictor, multiplier: float, facts: dict[str, Any]) -> None:
        super().__init__()
        self.predictor, self.multiplier, self.facts = predictor.eval().requires_grad_(False), multiplier, facts

    def forward(self, latent: Tensor) -> Tensor:
        """(B, D, h, w) -> groups of each position, (B, h, w) int64 from 1 to G, on the latent's device."""
        errors = self.predictor.to(latent.device)(latent)
        chosen = choose_groups(errors, self.facts["bits_per_group"], self.multiplier)
        return torch.stack([image.counts for image in chosen]).to(latent.device)

    @classmethod
    @torch.no_grad()
    def fitted(cls, tokenizer: ImageTokenizer, images: Sequence[Tensor], mean_groups: float) -> GroupAllocator:
        """Learn to predict errors, and find the price at which these images cost as much as some groups everywhere.

        Args:
            tokenizer: with nested groups.
            images: batches (B, 3, H, W) of one size, of whole positions, in [-1, 1]; a few hundred images will do.
            mean_groups: the budget: bits of so many groups for a position, on average, the map's included.

        Raises:
            ValueError: groups that are not nested, no image, or a budget that is too small or larger than all groups.
        """
        check_mean_groups(tokenizer, mean_groups)
        quantizer = tokenizer.quantizer
        groups, bits = quantizer.tokens_per_position, quantizer.bits_of(1)
        if not images:
            raise ValueError("there are no images to learn from which positions need more groups")
        device = tokenizer.device
        errors = torch.cat([measured_errors(tokenizer, batch.to(device)) for batch in images])
        latents = torch.cat([tokenizer.latent(batch.to(device)).float() for batch in images])
        predictor = ErrorPredictor.fitted(latents, errors)
        predicted = torch.cat([predictor(part).cpu() for part in latents.split(64)])
        try:
            multiplier = best_multiplier(list(predicted), bits, mean_groups * bits)
        except ValueError as error:
            raise ValueError(f"mean_groups {mean_groups:g} leaves no bits for the map: {error}") from error
        facts = {"tokenizer": tokenizer.tokens_fingerprint(), "dim": quantizer.dim, "groups": groups}
        return cls(predictor, multiplier, facts | {"bits_per_group": bits, "mean_groups": mean_groups})

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        metadata = {name: str(value) for name, value in self.facts.items()}
        metadata |= {"format": FORMAT, "multiplier": self.multiplier.hex()}
        state = {name: value.cpu().contiguous() for name, value in self.predictor.state_dict().items()}
        with atomic_write(path) as temporary:
            save_file(state, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path, tokenizer: ImageTokenizer) -> GroupAllocator:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file of another kind, or of another tokenizer.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such file: {path}")
        try:
            with safe_open(path, framework="pt") as file:
                said = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            if said.get("format") != FORMAT:
                raise ValueError(f"its format is {said.get('format')!r}, not {FORMAT!r}")
            facts: dict[str, Any] = {"tokenizer": said["tokenizer"]}
            facts |= {name: int(said[name]) for name in ("dim", "groups")}
            facts |= {name: float(said[name]) for name in ("bits_per_group", "mean_groups")}
            if (theirs := tokenizer.tokens_fingerprint()) != facts["tokenizer"]:
                raise ValueError(f"it is for the tokenizer {facts['tokenizer'][:12]}, this one is {theirs[:12]}")
            predictor = ErrorPredictor(tokenizer.quantizer.dim, tokenizer.quantizer.tokens_per_position)
            predictor.load_state_dict(state)
            return cls(predictor, float.fromhex(said["multiplier"]), facts)
        except (SafetensorError, ValueError, LookupError, RuntimeError, OSError) as error:
            raise ValueError(f"{path} does not say how groups are chosen: {one_line(error)[:300]}") from error
