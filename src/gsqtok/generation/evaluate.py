"""How predictable tokens are: what they cost under a prior, and how far its samples are from images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from gsqtok.evaluation.features import FeatureNetwork
from gsqtok.evaluation.similarity import to_8_bits
from gsqtok.evaluation.usage import CodebookUsage
from gsqtok.generation.prior import Prior
from gsqtok.generation.sampling import SamplingOptions, sample
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokens import TokenDataset

Progress = Callable[[int], Any]


@torch.no_grad()
def predictability(
    prior: Prior,
    tokens: TokenDataset,
    *,
    label: str | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    autocast: bool = False,
    on_progress: Progress = lambda images: None,
) -> dict[str, Any]:
    """Measure what held-out tokens cost.

    With the masked head, whose tokens come in any order, it is a bound from above: the mean over random orders
    (Hoogeboom et al. 2022, arXiv 2110.02037), estimated with one random number of hidden tokens for each image.

    Args:
        prior: in evaluation mode, on its device.
        tokens: with the column ``label`` among its columns if it is named.
        label: column of classes; None measures without classes.
        batch_size: images at a time.
        limit: only the first so many images.
        autocast: in bfloat16.
        on_progress: called with the number of images done since the last call.

    Returns:
        ``nats_per_token``, ``bits_per_token``, ``bits_per_position`` and ``bits_per_pixel`` under the prior;
        ``fixed_bits_per_token``, log2(V); ``entropy_bits_per_token``, of the frequencies in each group; ``images``;
        lists ``bits_by_group`` and ``entropy_bits_by_group``; and ``bits_by_position``, rows of positions.

    Raises:
        ValueError: tokens that the prior was not made for.
    """
    require_tokens(prior, tokens)
    vocabulary, device = prior.vocabulary, prior.device
    rows = len(tokens) if limit is None else min(limit, len(tokens))
    usage = CodebookUsage(vocabulary.codebook_size, vocabulary.groups)
    total: Tensor | None = None
    draw = torch.Generator(device).manual_seed(0)
    for batch in DataLoader(Subset(tokens, range(rows)), batch_size=batch_size):
        grids = batch["tokens"].to(device)
        labels = None
        if label is not None:
            labels = batch[label].to(device)
            labels = labels.masked_fill((labels < 0) | (labels >= vocabulary.classes), vocabulary.classes)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            losses = _bound(prior, grids, labels, draw) if prior.masked else prior(grids, labels)
        own = losses.double().sum(0)
        total = own if total is None else total + own
        usage.update(grids.cpu())
        on_progress(len(grids))
    if total is None:
        raise ValueError(f"{tokens.folder} holds no tokens")
    bits = total.cpu() / rows / math.log(2)
    pixels = tokens.manifest["factor"] ** 2 if tokens.manifest["factor"] else math.nan
    entropies = [math.log2(perplexity) for perplexity in usage.compute()["perplexity_per_group"]]  # type: ignore[union-attr]
    return {
        "images": rows,
        "nats_per_token": float(bits.mean()) * math.log(2),
        "bits_per_token": float(bits.mean()),
        "bits_per_position": float(bits.sum(-1).mean()),
        "bits_per_pixel": float(bits.sum(-1).mean()) / pixels,
        "fixed_bits_per_token": math.log2(vocabulary.codebook_size),
        "entropy_bits_per_token": sum(entropies) / len(entropies),
        "bits_by_group": bits.mean((0, 1)).tolist(),
        "entropy_bits_by_group": entropies,
        "bits_by_position": bits.sum(-1).tolist(),
    }


def _bound(prior: Prior, tokens: Tensor, labels: Tensor | None, draw: torch.Generator) -> Tensor:
    """Nats of each token (B, h, w, G), whose mean over the draw is the cost in a random order.

    Of N tokens n are hidden, n uniform in 1 ... N, spread evenly over the batch: one of the n is the next of a random
    order, so N / n times their losses has the mean that is asked for.
    """
    batch, number = len(tokens), tokens[0].numel()
    start = torch.rand((), device=tokens.device, generator=draw)
    spread = (torch.arange(batch, device=tokens.device) + start) / batch
    hidden_number = (spread * number).long().clamp_(max=number - 1) + 1
    order = torch.rand(batch, number, device=tokens.device, generator=draw).argsort(1).argsort(1)
    hidden = (order < hidden_number[:, None]).view(tokens.shape)
    losses: Tensor = prior(tokens, labels, hidden)
    return losses * (number / hidden_number).view(-1, 1, 1, 1)


def require_tokens(prior: Prior, tokens: TokenDataset) -> None:
    """Refuse tokens that the prior was not made for.

    Raises:
        ValueError: of another tokenizer, or another number of codewords or groups.
    """
    manifest, vocabulary = tokens.manifest, prior.vocabulary
    theirs = (manifest["groups"], manifest["codebook_size"])
    if theirs != (vocabulary.groups, vocabulary.codebook_size):
        raise ValueError(
            f"{tokens.folder} holds {theirs[0]} tokens of {theirs[1]:,} codewords a position, the prior knows "
            f"{vocabulary.groups} of {vocabulary.codebook_size:,}"
        )
    if manifest["tokenizer"] != vocabulary.tokenizer:
        raise ValueError(
            f"{tokens.folder} holds tokens of the tokenizer {manifest['tokenizer'][:12]}, the prior is for those of "
            f"{vocabulary.tokenizer[:12]}: tokenize the images with that one"
        )


def sampled_images(
    prior: Prior,
    tokenizer: ImageTokenizer,
    number: int,
    *,
    by_class: bool,
    batch_size: int = 32,
    options: SamplingOptions | None = None,
    seed: int = 0,
    autocast: bool = False,
) -> Iterator[Tensor]:
    """Samples decoded to images (B, 3, H, W) in [-1, 1], batch by batch; with ``by_class``, every class as often."""
    prior.vocabulary.require(tokenizer)
    draw = torch.Generator(prior.device).manual_seed(seed)
    for first in range(0, number, batch_size):
        wanted = range(first, min(first + batch_size, number))
        labels = prior.labels([i % prior.vocabulary.classes for i in wanted]) if by_class else None
        with torch.autocast(prior.device.type, torch.bfloat16, enabled=autocast):
            tokens = sample(prior, len(wanted), labels=labels, options=options, generator=draw)
        yield tokenizer.decode(tokens.to(tokenizer.device))


@torch.no_grad()
def frechet_distance(
    samples: Iterable[Tensor],
    images: Iterable[Tensor],
    network: FeatureNetwork,
    device: torch.device,
    on_progress: Progress = lambda images: None,
) -> float:
    """The Fréchet distance of samples to images, batches (B, 3, H, W) in [-1, 1] each, in a network's features."""
    from gsqtok.evaluation.frechet import FrechetDistance  # with torchmetrics, which takes seconds to import

    network.to(device)
    distance = FrechetDistance(network.dim).to(device)
    for real, batches in ((False, samples), (True, images)):
        for batch in batches:
            distance.update(network(to_8_bits(batch.to(device))).pooled, real=real)
            if not real:
                on_progress(len(batch))
    return float(distance.compute())
