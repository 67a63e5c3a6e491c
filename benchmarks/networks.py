"""The networks that are measured, the ways of running them, and clocks: for throughput.py and kernels.py."""

from __future__ import annotations

import contextlib
import copy
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gsqtok import ImageTokenizer
from gsqtok.acceleration import accelerate
from gsqtok.tokenizer import TokenizerConfig

MULTIPLIERS = {8: (1, 2, 2, 4), 16: (1, 1, 2, 2, 4)}
SECONDS = 0.7  # for one median


def model(factor: int, toy: bool) -> ImageTokenizer:
    """The paper's networks, with random weights."""
    torch.manual_seed(0)
    return ImageTokenizer(
        TokenizerConfig(
            channels=32 if toy else 128,
            multipliers=MULTIPLIERS[factor],
            encoder_blocks=1 if toy else 2,
            decoder_blocks=1 if toy else 2,
            adaptive_norm=True,
            depth_to_space=True,
        )
    )


def with_original(tokenizer: ImageTokenizer, checkout: str) -> ImageTokenizer:
    """A copy whose encoder and decoder are the original implementation's, of the same configuration, random weights."""
    sys.path.insert(0, checkout)
    original = importlib.import_module("flex_gen.autoencoders.flexTokenizer.flexTokenizer")
    config = tokenizer.config
    levels = len(config.multipliers)
    networks = original.FlexTokenizer(
        hidden_channels=config.channels,
        channel_multipliers=config.multipliers,
        encoder_layer_configs=(config.encoder_blocks,) * levels + (config.encoder_middle_blocks,),
        decoder_layer_configs=(config.decoder_blocks,) * levels + (config.decoder_middle_blocks,),
        embedding_dim=config.latent_dim,
        use_adaptive_norm=config.adaptive_norm,
        use_learnable_up_down_sample=config.depth_to_space,
        quantizer_config={"quantize_type": "vq", "embed_dim": config.latent_dim, "num_embed": 16},
    )
    tokenizer = copy.deepcopy(tokenizer)
    for name in ("encoder", "decoder"):
        ours, theirs = getattr(tokenizer, name), getattr(networks, name)
        counts = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
        if counts[0] != counts[1]:
            raise ValueError(f"the {name} in {checkout} has {counts[1]:,} parameters, this one {counts[0]:,}")
        setattr(tokenizer, name, theirs)
    return tokenizer


def random_images(batch: int, size: int, device: str) -> Tensor:
    """Smooth random images."""
    return F.interpolate(torch.rand(batch, 3, 16, 16, device=device) * 2 - 1, (size, size), mode="bilinear")


def median_time(run: Callable[[], Any], device: str, seconds: float = SECONDS) -> float:
    for _ in range(3):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def flops(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Of one forward pass of the plain formula, for a network that nothing has been done to."""
    network = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(shape, device="meta"))
    return counter.get_total_flops()


def matrix_rate(device: str) -> float:
    """Multiply-adds count as two; a square product in bfloat16."""
    n = 8192 if device == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / median_time(lambda: a @ b, device)


def copy_rate(device: str) -> float:
    """Bytes read and written a second, of a large copy."""
    x = torch.randn(2**28 if device == "cuda" else 2**20, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / median_time(lambda: y.copy_(x), device)


def inference(tokenizer: ImageTokenizer, way: str, device: str) -> tuple[ImageTokenizer, contextlib.ExitStack]:
    """A copy that runs in this way, and what ends it."""
    tokenizer = copy.deepcopy(tokenizer).to(device).eval()
    stack = contextlib.ExitStack()
    stack.enter_context(torch.no_grad())
    if way in ("original", "published", "layout"):
        stack.enter_context(torch.autocast(device, torch.bfloat16))
    if way == "layout":
        tokenizer.to(memory_format=torch.channels_last)
    if way in ("compiled", "fused", "graphs"):
        tokenizer.optimize(torch.bfloat16, cuda_graphs=way == "graphs")
    if way == "compiled":
        tokenizer.encoder.compile()
        tokenizer.decoder.compile()
    accelerate(tokenizer, enabled=way in ("fused", "graphs"))
    return tokenizer, stack
