"""Grids of tokens as sequences for a generative model, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Which token stands where, and what number it has.

    Orders: "grid" keeps (h, w, G). "interleaved" is a sequence of h w G tokens, position after position in raster
    order, the G tokens of a position together. "raster" is group after group: all h w tokens of the first group in
    raster order, then those of the second.

    Vocabularies: "shared" numbers every group's tokens 0 ... V - 1, vocabulary V. "offset" gives group g the numbers
    g V ... g V + V - 1, vocabulary G V, so that the groups' embeddings are apart.

    Attributes:
        groups: G, tokens of a position.
        codebook_size: V.
        order: "grid", "interleaved" or "raster".
        vocabulary: "shared" or "offset".
    """

    groups: int
    codebook_size: int
    order: Literal["grid", "interleaved", "raster"] = "grid"
    vocabulary: Literal["shared", "offset"] = "shared"

    def __post_init__(self) -> None:
        if self.order not in ("grid", "interleaved", "raster"):
            raise ValueError(f"order must be 'grid', 'interleaved' or 'raster', got {self.order!r}")
        if self.vocabulary not in ("shared", "offset"):
            raise ValueError(f"vocabulary must be 'shared' or 'offset', got {self.vocabulary!r}")

    @property
    def vocab_size(self) -> int:
        """Numbers that may occur: V, or G V with an offset for each group. Special tokens begin here."""
        return self.codebook_size * (self.groups if self.vocabulary == "offset" else 1)

    def arrange(self, grid: Tensor) -> Tensor:
        """(..., h, w, G) int64 -> the same, or (..., h w G)."""
        if self.vocabulary == "offset":
            grid = grid + torch.arange(self.groups, device=grid.device) * self.codebook_size
        if self.order == "raster":
            grid = grid.movedim(-1, -3)
        return grid if self.order == "grid" else grid.flatten(-3)

    def restore(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The inverse of ``arrange``: (..., h, w, G) int64.

        Args:
            tokens: what ``arrange`` gives, or a model has made.
            grid: (h, w); default: square. Not needed for the order "grid".

        Raises:
            ValueError: a length that does not fit, or with "offset" a token outside its group's numbers.
        """
        if self.order != "grid":
            height, width = grid or self._square(tokens.shape[-1])
            if tokens.shape[-1] != height * width * self.groups:
                raise ValueError(f"{tokens.shape[-1]} tokens do not fill {height} x {width} x {self.groups}")
            if self.order == "raster":
                tokens = tokens.unflatten(-1, (self.groups, height, width)).movedim(-3, -1)
            else:
                tokens = tokens.unflatten(-1, (height, width, self.groups))
        if self.vocabulary == "offset":
            tokens = tokens - torch.arange(self.groups, device=tokens.device) * self.codebook_size
            if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.codebook_size:
                raise ValueError("a token lies outside the numbers of its group: mask the model's logits by position")
        return tokens

    def _square(self, length: int) -> tuple[int, int]:
        side = round((length / self.groups) ** 0.5)
        if side * side * self.groups != length:
            raise ValueError(f"{length} tokens of {self.groups} groups are no square: give the grid (h, w)")
        return side, side
