"""How long a tokenizer and its quantizer take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from gsqtok.tokenizer import ImageTokenizer
from gsqtok.training.config import TrainConfig

_SECONDS = 0.5  # that each measurement takes, about
_LEAST = 5


def time_tokenizer(config: TrainConfig, batch: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of each part, untrained weights, the median of many calls, each waited for.

    Args:
        config: its model, image size and precision.
        batch: images at once.
        device: where.

    Returns:
        ``quantizer_ms`` (tokens and values, inference), ``quantizer_step_ms`` (forward and backward),
        ``encode_ms`` (images to tokens), ``decode_ms`` (tokens to images), ``quantizer_share`` (quantizer_ms of
        encode_ms) and, on a GPU, ``quantizer_memory_mib``: what the step takes beyond latents and codebook.
    """
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(config.model).to(device).eval()
    size, quantizer = config.data.size, tokenizer.quantizer
    bf16 = config.precision == "bfloat16" and device.type == "cuda"

    def autocast() -> Any:
        return torch.autocast("cuda", torch.bfloat16) if bf16 else nullcontext()

    images = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    side = size // tokenizer.factor
    latent = torch.randn(batch, side, side, config.model.latent_dim, device=device)
    trained = latent.clone().requires_grad_()

    @torch.no_grad()
    def look_up() -> None:
        quantizer(latent)

    def step() -> None:
        trained.grad = None
        quantizer.zero_grad(set_to_none=True)
        with autocast():
            out = quantizer(trained)
        (out.quantized.square().mean() + out.loss).backward()

    def encode() -> None:
        with autocast():
            tokenizer.encode(images)

    tokens = tokenizer.encode(images)

    def decode() -> None:
        with autocast():
            tokenizer.decode(tokens)

    figures = {"quantizer_ms": _median_ms(look_up, device)}
    quantizer.train()
    if device.type == "cuda":
        step()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        figures["quantizer_memory_mib"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    figures["quantizer_step_ms"] = _median_ms(step, device)
    quantizer.eval()
    figures |= {"encode_ms": _median_ms(encode, device), "decode_ms": _median_ms(decode, device)}
    return figures | {"quantizer_share": figures["quantizer_ms"] / figures["encode_ms"]}


def _median_ms(call: Callable[[], None], device: torch.device) -> float:
    def once() -> float:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1000 * (time.perf_counter() - began)

    for _ in range(3):
        once()
    return statistics.median(once() for _ in range(max(_LEAST, int(1000 * _SECONDS / max(once(), 0.01)))))
