"""Measuring a tokenizer on pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from gsqtok.data import ImageTransform, eval_loader
from gsqtok.evaluation.metrics import ReconstructionMetrics, usage_of
from gsqtok.tokenizer import ImageTokenizer


@torch.no_grad()
def evaluate(
    tokenizer: ImageTokenizer,
    dataset: Any,
    *,
    transform: ImageTransform | None = None,
    batch_size: int = 32,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    on_progress: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """Reconstruct every picture once and measure.

    Args:
        tokenizer: in evaluation mode; measured where its weights are.
        dataset: what ``gsqtok.data.open_source`` returns.
        transform: applied to each picture; None keeps pictures as they are.
        batch_size: pictures of equal size that share a batch.
        workers: processes that decode pictures.
        rank: this process among ``world_size``; figures are summed over ranks.
        world_size: number of processes.
        on_progress: called with the number of pictures done since the last call.

    Returns:
        psnr (dB, mean over pictures), psnr_pooled, ssim, images, rejected, and of the codebook usage, perplexity,
        entropy_bits (pooled over groups, and per group; left out for a codebook beyond ``MAX_COUNTED``),
        bits_per_position, bits_per_pixel (nominal), images_per_second (of the tokenizer, decoding of files left out).

    Raises:
        ValueError: no picture could be read.
    """
    quantizer = tokenizer.quantizer
    metrics = ReconstructionMetrics()
    usage = usage_of(quantizer)
    if tokenizer.device.type == "cuda":  # elsewhere the metrics stay on the CPU, which has float64
        metrics, usage = metrics.to(tokenizer.device), usage and usage.to(tokenizer.device)
    count, seconds = 0, 0.0
    transform = transform or ImageTransform(None, crop="none")
    loader = eval_loader(dataset, transform, batch_size=batch_size, workers=workers, rank=rank, world_size=world_size)
    for batch in loader:
        images = batch["image"].to(tokenizer.device)
        start = time.perf_counter()
        tokens = tokenizer.encode(images)
        reconstruction = tokenizer.decode(tokens, tuple(images.shape[2:]))
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        seconds += time.perf_counter() - start
        metrics.update(reconstruction, images)
        if usage is not None:
            usage.update(tokens)
        count += len(images)
        if on_progress is not None:
            on_progress(len(images) + len(batch["rejected"]))
    if not count and world_size == 1:
        raise ValueError(f"no picture could be read: {loader.rejects.summary()}")
    return {
        **metrics.compute(),
        **(usage.compute() if usage is not None else {}),
        "rejected": len(loader.rejects),
        "bits_per_position": quantizer.bits,
        "bits_per_pixel": tokenizer.bits_per_pixel,
        "images_per_second": count / seconds if seconds else 0.0,
    }
