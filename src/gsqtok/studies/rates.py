"""A nested tokenizer at all its rates: fixed groups, and groups chosen for each position under the same budget."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gsqtok.data import ImageTransform, eval_loader
from gsqtok.evaluation.similarity import similarity
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokenizer.allocation import Allocation, ErrorPredictor, allocate, measured_errors


@torch.no_grad()
def nested_metrics(tokenizer: ImageTokenizer, source: Any, transform: ImageTransform, images: int) -> dict[str, float]:
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
    """
    seen = _gather(tokenizer, source, transform, images)
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
    tokenizer: ImageTokenizer, source: Any, transform: ImageTransform, images: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images on the CPU, latents and errors, batch by batch."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in eval_loader(source, transform, batch_size=50):
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
