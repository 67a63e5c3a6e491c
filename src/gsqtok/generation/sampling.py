"""Drawing tokens from a prior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gsqtok.generation.embeddings import MOST_LOGITS
from gsqtok.generation.prior import Prior


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the most probable token.
        top_k: only so many of the most probable tokens; None: all.
        top_p: only the most probable tokens that together have this probability.
        guidance: classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): 1 is without, larger values
            exaggerate what the class changes.
        steps: for the masked head: passes of the network.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    guidance: float = 1.0
    steps: int = 16

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.guidance >= 0 and self.steps >= 1):
            raise ValueError(
                "temperature and guidance must not be negative, top_p must lie in (0, 1], and steps be 1 or more; got "
                f"{self.temperature}, {self.guidance}, {self.top_p} and {self.steps}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {self.top_k}")


@torch.no_grad()
def sample(
    prior: Prior,
    number: int,
    *,
    labels: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    options: SamplingOptions | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw tokens (number, h, w, G) int64.

    Args:
        prior: in evaluation mode, on its device.
        number: of images.
        labels: (number,) classes, see ``Prior.labels``; None: of any class.
        grid: (h, w); None: that of training.
        options: how.
        generator: of the prior's device; makes the draw repeatable.

    Raises:
        ValueError: guidance without labels.
    """
    options = options or SamplingOptions()
    grid = grid or prior.vocabulary.grid
    guided = options.guidance != 1
    if guided and labels is None:
        raise ValueError("guidance needs classes: it exaggerates what a class changes")
    if guided:
        assert labels is not None
        labels = torch.cat([labels, torch.full_like(labels, prior.vocabulary.classes)])

    draw = _masked if prior.masked else _raster
    return draw(prior, number, labels, grid, options, generator)


def _raster(
    prior: Prior,
    number: int,
    labels: Tensor | None,
    grid: tuple[int, int],
    options: SamplingOptions,
    generator: torch.Generator | None,
) -> Tensor:
    """Position after position; each passes through the network once."""
    guided = options.guidance != 1
    state = prior.begin(number * (1 + guided), grid, labels)

    def pick(logits: Tensor) -> Tensor:
        tokens = draw(_guided(logits, options.guidance), options, generator)[0]
        return tokens.repeat(2) if guided else tokens

    tokens: list[Tensor] = []
    for _ in range(grid[0] * grid[1]):
        x = prior.step(state, tokens[-1] if tokens else None)
        tokens.append(prior.head.pick(x, prior.embedding, state.outputs, pick))
    return torch.stack(tokens, 1)[:number].unflatten(1, grid)


def _masked(
    prior: Prior,
    number: int,
    labels: Tensor | None,
    grid: tuple[int, int],
    options: SamplingOptions,
    generator: torch.Generator | None,
) -> Tensor:
    """All tokens at each step, of which the surest stay, by MaskGIT's cosine schedule."""
    groups = prior.vocabulary.groups
    total = grid[0] * grid[1] * groups
    tokens = torch.zeros(number, *grid, groups, dtype=torch.int64, device=prior.device)
    hidden = torch.ones_like(tokens, dtype=torch.bool)
    for step in range(1, options.steps + 1):
        drawn, sure = _predicted(prior, tokens, hidden, labels, options, generator)
        tokens = torch.where(hidden, drawn, tokens)
        left = int(total * math.cos(step / options.steps * math.pi / 2))
        warmth = options.temperature * (1 - step / options.steps)  # noise on what is sure, less and less
        noise = torch.rand(sure.shape, device=sure.device, generator=generator).clamp_min_(1e-20).log_()
        sure = (sure - warmth * (-noise).log()).masked_fill(~hidden, torch.inf)
        order = sure.flatten(1).argsort(1)[:, :left]
        hidden = torch.zeros_like(hidden.flatten(1)).scatter_(1, order, True).view_as(hidden)
    return tokens


def _predicted(
    prior: Prior,
    tokens: Tensor,
    hidden: Tensor,
    labels: Tensor | None,
    options: SamplingOptions,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Tokens drawn for every place (B, h, w, G), and the logarithms of their probabilities."""
    twice = 2 if options.guidance != 1 else 1
    x = prior.positions(tokens.repeat(twice, 1, 1, 1), labels, hidden.repeat(twice, 1, 1, 1))
    out = prior.head(x.flatten(0, 1), tokens.repeat(twice, 1, 1, 1).flatten(0, 2), prior.embedding)
    outputs, drawn = prior.embedding.outputs(), []
    rows = max(1, MOST_LOGITS // (twice * prior.vocabulary.codebook_size))
    for group in range(prior.vocabulary.groups):
        parts = []
        for part in out[:, group].unflatten(0, (twice, -1)).split(rows, 1):
            logits = prior.embedding.logits(part.flatten(0, 1), outputs, group)
            parts.append(draw(_guided(logits, options.guidance), options, generator))
        drawn.append([torch.cat(values) for values in zip(*parts, strict=True)])
    picked, sure = (torch.stack(parts, -1).view(tokens.shape) for parts in zip(*drawn, strict=True))
    return picked, sure


def _guided(logits: Tensor, guidance: float) -> Tensor:
    logits = logits.float()
    if guidance == 1:
        return logits
    conditional, unconditional = logits.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def draw(logits: Tensor, options: SamplingOptions, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Tokens (N,) drawn from logits (N, V) float32, and the logarithms of their probabilities."""
    if options.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        kept = logits / options.temperature
        if options.top_k is not None and options.top_k < logits.shape[-1]:
            kept = kept.masked_fill(kept < kept.topk(options.top_k).values[:, -1:], -torch.inf)
        if options.top_p < 1:
            ordered, order = kept.sort(descending=True)
            shares = ordered.softmax(-1)
            left_out = torch.zeros_like(kept, dtype=torch.bool).scatter_(
                -1, order, shares.cumsum(-1) - shares >= options.top_p
            )
            kept = kept.masked_fill(left_out, -torch.inf)
        tokens = torch.multinomial(kept.softmax(-1), 1, generator=generator)[:, 0]
    return tokens, logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
