"""A nested tokenizer at all its rates: fixed groups, and groups chosen for each position under the same budget."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from gsqtok.data import ImageTransform, eval_loader
from gsqtok.evaluation.features import FeatureNetwork
from gsqtok.evaluation.frechet import FrechetDistance
from gsqtok.evaluation.similarity import similarity, to_8_bits
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokenizer.allocation import Allocation, ErrorPredictor, allocate, measured_errors


@torch.no_grad()
def metrics_by_groups(
    tokenizer: ImageTokenizer,
    source: Any,
    transform: ImageTransform,
    *,
    features: FeatureNetwork | None = None,
    batch_size: int = 32,
    workers: int = 0,
) -> dict[str, float]:
    """Measure all images with 1 to G - 1 groups in one pass: what ``evaluate(..., groups=k)`` says, one k at a time.

    Args:
        tokenizer: with nested groups.
        source: what ``open_source`` returns.
        transform: of the images, to a size of whole positions.
        features: network of the Fréchet distance; None leaves it out.
        batch_size: images at once.
        workers: processes that decode images.

    Returns:
        ``psnr_groups_K``, ``ssim_groups_K`` (means over images), ``bits_per_pixel_groups_K`` and, with features,
        ``frechet_distance_NETWORK_groups_K``.
    """
    quantizer, device = tokenizer.quantizer, tokenizer.device
    fewer = range(1, quantizer.tokens_per_position)
    network = features and features.to(device)
    frechet = {} if network is None else {k: FrechetDistance(network.dim).to(device) for k in fewer}
    seen: defaultdict[str, list[Tensor]] = defaultdict(list)
    for batch in eval_loader(source, transform, batch_size=batch_size, workers=workers):
        images = batch["image"].to(device)
        tokens = tokenizer.encode(images)
        real = None if network is None else network(to_8_bits(images)).pooled
        for k in fewer:
            restored = tokenizer.decode(tokens[..., :k])
            of_each = similarity(restored, images)
            for name in ("psnr", "ssim"):
                seen[f"{name}_groups_{k}"].append(of_each[name])
            if network is not None and real is not None:
                frechet[k].update(real, real=True)
                frechet[k].update(network(to_8_bits(restored)).pooled, real=False)
    metrics = {name: torch.cat(parts).double().mean().item() for name, parts in seen.items()}
    metrics |= {f"bits_per_pixel_groups_{k}": tokenizer.bits_per_pixel_of(k) for k in fewer}
    if network is not None:
        metrics |= {f"frechet_distance{network.suffix}_groups_{k}": of.compute().item() for k, of in frechet.items()}
    return metrics


@torch.no_grad()
def nested_metrics(
    tokenizer: ImageTokenizer, source: Any, transform: ImageTransform, images: int, workers: int = 0
) -> dict[str, float]:
    """Measure PSNR (mean over images) and bits per pixel of groups that are chosen for each position.

    A predictor of errors is trained on half of the images; all is measured on the other half: ``psnr_chosen_K`` of
    groups that are chosen by the encoder's own errors, at a budget of as many bits as K groups, the map of the choice
    included; ``psnr_predicted_K`` of those chosen by errors that are predicted from the latent; and ``psnr_fixed_K`` of
    K groups everywhere. Each with ``bits_per_pixel_...``.

    Args:
        tokenizer: with nested groups.
        source: what ``open_source`` returns.
        transform: of the images, to a size of whole positions.
        images: at most so many, the first ones.
        workers: processes that decode images.
    """
    seen = _gather(tokenizer, source, transform, images, workers)
    pixels, latents, errors = (torch.cat(parts) for parts in zip(*seen, strict=True))
    half = len(pixels) // 2
    if half == 0:
        return {}
    pixels, of_encoder = pixels[half:], errors[half:].cpu()
    predictor = ErrorPredictor.fitted(latents[:half], errors[:half])
    predicted = predictor(latents[half:]).cpu()
    groups = errors.shape[-1]
    bits = tokenizer.quantizer.bits_of(1)
    metrics: dict[str, float] = {}
    for k in range(1, groups + 1):
        fixed = torch.full(errors.shape[1:3], k)
        everywhere = [Allocation(fixed, k * bits * fixed.numel())] * len(pixels)
        metrics |= _measured(tokenizer, pixels, everywhere, f"fixed_{k}")
        if 1 < k < groups:
            for name, by in (("chosen", of_encoder), ("predicted", predicted)):
                found = allocate(list(by), bits, k * bits)
                metrics |= _measured(tokenizer, pixels, found, f"{name}_{k}")
    return metrics


def _gather(
    tokenizer: ImageTokenizer, source: Any, transform: ImageTransform, images: int, workers: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images on the CPU, latents and errors, batch by batch."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in eval_loader(source, transform, batch_size=50, workers=workers):
        pixels = batch["image"][: images - sum(len(part[0]) for part in seen)].to(tokenizer.device)
        if not len(pixels):
            break
        seen.append((pixels.cpu(), tokenizer.latent(pixels).float(), measured_errors(tokenizer, pixels)))
    return seen


def _measured(tokenizer: ImageTokenizer, images: Tensor, chosen: list[Allocation], name: str) -> dict[str, float]:
    """PSNR and bits per pixel of images (N, 3, H, W) with these groups."""
    psnr = []
    for start in range(0, len(images), 50):
        part = images[start : start + 50].to(tokenizer.device)
        counts = torch.stack([allocation.counts for allocation in chosen[start : start + 50]])
        restored = tokenizer.decode(tokenizer.encode(part, groups=counts))
        psnr.append(similarity(restored, part)["psnr"])
    spent = sum(allocation.bits for allocation in chosen) / images[:, 0].numel()
    return {f"psnr_{name}": torch.cat(psnr).double().mean().item(), f"bits_per_pixel_{name}": spent}
