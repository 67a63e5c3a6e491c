"""A transformer that reads as the usual one: RMSNorm before each part, rotary positions in 2-D, a KV cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gsqtok.generation.arithmetic import Arithmetic, FloatingPoint

HEAD_WIDTH = 64
_LONGEST_WAVE = 100.0  # positions, about twice the side of the largest grids


class Linear(nn.Module):
    """A matrix without a bias."""

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0) -> None:
        super().__init__()
        self.arithmetic: Arithmetic = FloatingPoint()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * (scale * inputs**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.arithmetic.linear(x, self.weight)


class RMSNorm(nn.Module):
    """Root mean square normalisation with a scale for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.arithmetic: Arithmetic = FloatingPoint()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same."""
        return self.arithmetic.norm(x, self.weight)


class Cache:
    """Keys and values of the positions so far, in memory for all that will come.

    Attributes:
        length: positions so far.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int]) -> None:
        self.length = 0
        self._layers, self._shape = layers, shape
        self._kept: Tensor | None = None  # of the type of the first keys, which autocast decides

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep (B, heads, n, d) of a layer; all of it so far comes back."""
        if self._kept is None:
            self._kept = k.new_empty(self._layers, 2, *self._shape, k.shape[-1])
        end = self.length + k.shape[2]
        kept = self._kept[layer]
        kept[0, :, :, self.length : end], kept[1, :, :, self.length : end] = k, v
        return kept[0, :, :, :end], kept[1, :, :, :end]


class Attention(nn.Module):
    """Self-attention with normalised queries and keys (Henry et al. 2020, arXiv 2010.04245)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.arithmetic: Arithmetic = FloatingPoint()
        self.heads = width // HEAD_WIDTH
        self.qkv = Linear(width, 3 * width)
        self.q_norm, self.k_norm = RMSNorm(HEAD_WIDTH), RMSNorm(HEAD_WIDTH)
        self.out = Linear(width, width, (2 * layers) ** -0.5)

    def forward(self, x: Tensor, angles: Tensor | None, causal: bool, cache: Cache | None, layer: int) -> Tensor:
        """(B, n, width) -> the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = self.arithmetic.rotate(q, angles), self.arithmetic.rotate(k, angles)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        return self.out(self.arithmetic.attend(q, k, v, causal).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a network for each position, each added to its input."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.arithmetic: Arithmetic = FloatingPoint()
        self.norm_1, self.norm_2 = RMSNorm(width), RMSNorm(width)
        self.attention = Attention(width, layers)
        self.up, self.down = Linear(width, 4 * width), Linear(4 * width, width, (2 * layers) ** -0.5)

    def forward(self, x: Tensor, angles: Tensor | None, causal: bool, cache: Cache | None, layer: int) -> Tensor:
        """(B, n, width) -> the same."""
        x = x + self.attention(self.norm_1(x), angles, causal, cache, layer)
        return x + self.down(self.arithmetic.activation(self.up(self.norm_2(x))))


class Transformer(nn.Module):
    """Blocks, and a normalisation at the end.

    Args:
        width: channels, a multiple of 64, the width of an attention head.
        layers: number of blocks.
        causal: whether a position sees only itself and those before.
    """

    def __init__(self, width: int, layers: int, causal: bool) -> None:
        super().__init__()
        self.width, self.causal = width, causal
        self.blocks = nn.ModuleList(Block(width, layers) for _ in range(layers))
        self.norm = RMSNorm(width)

    def cache(self, batch: int, positions: int) -> Cache:
        """An empty cache for so many positions."""
        return Cache(len(self.blocks), (batch, self.width // HEAD_WIDTH, positions))

    def forward(self, x: Tensor, angles: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """x (B, n, width) at positions with these rotary ``angles`` (n, 32) -> (B, n, width).

        With a cache, x are the next n positions after those in it.
        """
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, self.causal, cache, layer)
        if cache is not None:
            cache.length += x.shape[1]
        return self.norm(x)


def grid_angles(rows: int, columns: int, device: torch.device) -> Tensor:
    """Rotary angles (rows * columns, 32) of a grid in raster order: half of them turn by row, half by column."""
    waves = HEAD_WIDTH // 4
    speeds = torch.tensor([math.pow(_LONGEST_WAVE, -i / waves) for i in range(waves)], dtype=torch.float64)
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    return torch.cat([row[:, None] * speeds, column[:, None] * speeds], 1).to(device)
