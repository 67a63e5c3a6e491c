"""How long a tokenizer and its quantizer take."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.utils.benchmark import Timer

from gsqtok.tokenizer import ImageTokenizer
from gsqtok.training.config import TrainConfig

_SECONDS = 0.5  # that each measurement takes, about


def time_tokenizer(config: TrainConfig, batch: int, device: torch.device) -> dict[str, float]:
    """Time each part of an untrained model, in milliseconds: the median of many calls, each waited for.

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

    def autocast() -> AbstractContextManager:
        bf16 = config.precision == "bfloat16" and device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if bf16 else nullcontext()

    images = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    side = size // config.model.factor
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
        quantizer.update(trained, out.indices)

    def encode() -> None:
        with autocast():
            tokenizer.encode(images)

    tokens = tokenizer.encode(images)

    def decode() -> None:
        with autocast():
            tokenizer.decode(tokens)

    metrics = {"quantizer_ms": _median_ms(look_up)}
    quantizer.train()
    if device.type == "cuda":
        step()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        metrics["quantizer_memory_mib"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    metrics["quantizer_step_ms"] = _median_ms(step)
    quantizer.eval()
    metrics |= {"encode_ms": _median_ms(encode), "decode_ms": _median_ms(decode)}
    return metrics | {"quantizer_share": metrics["quantizer_ms"] / metrics["encode_ms"]}


def _median_ms(call: Callable[[], None]) -> float:
    wait = "; torch.cuda.synchronize()" if torch.cuda.is_available() else ""
    timer = Timer(f"call(){wait}", globals={"call": call, "torch": torch}, num_threads=torch.get_num_threads())
    return 1000 * timer.blocked_autorange(min_run_time=_SECONDS).median
