"""Grids of tokens as sequences for a generative model, and back; and as rows hold them.

Where positions keep groups of their own number, a grid (h, w, G) has -1 in the place of the others. A row holds the
tokens that are kept alone, position after position in raster order, and in ``counts`` how many each position has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COUNTS = "counts"  # the column of a shard


def kept(grid: NDArray[np.signedinteger]) -> tuple[NDArray[np.signedinteger], NDArray[np.uint8]]:
    """A grid (h, w, G) with -1 for what is left out -> its other tokens (n,), and the counts (h w,)."""
    return grid[grid >= 0], (grid >= 0).sum(-1).astype(np.uint8).ravel()


def restored(tokens: Tensor, counts: Tensor, groups: int, by_group: bool = False) -> Tensor:
    """The inverse of `kept`: tokens (n,) and counts (h, w) -> (h, w, G) int64, -1 for what is left out.

    Args:
        tokens: position after position.
        counts: of each position, how many.
        groups: G.
        by_group: the tokens come group after group.

    Raises:
        ValueError: more or fewer tokens than the counts say, or a count that is not from 1 to G.
    """
    if counts.numel() and not 1 <= int(counts.min()) <= int(counts.max()) <= groups:
        raise ValueError(f"counts of groups must be from 1 to {groups}")
    if tokens.shape != (total := int(counts.sum()),):
        raise ValueError(f"the counts say {total} tokens, there are {tuple(tokens.shape)}")
    there = torch.arange(groups, device=tokens.device) < counts.to(tokens.device).unsqueeze(-1)
    there = there.movedim(-1, 0) if by_group else there
    grid = torch.full_like(there, -1, dtype=torch.int64).masked_scatter(there, tokens.long())
    return grid.movedim(0, -1) if by_group else grid


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
        """(..., h, w, G) int64 -> the same, or (..., h w G).

        Groups that are left out (-1) stay so in a grid. In the sequence of a single grid they are not there at all.
        """
        if self.vocabulary == "offset":
            grid = torch.where(
                grid < 0, grid, grid + torch.arange(self.groups, device=grid.device) * self.codebook_size
            )
        if self.order == "grid":
            return grid
        sequence = (grid.movedim(-1, -3) if self.order == "raster" else grid).flatten(-3)
        return sequence[sequence >= 0] if sequence.ndim == 1 else sequence

    def restore(self, tokens: Tensor, grid: tuple[int, int] | None = None, counts: Tensor | None = None) -> Tensor:
        """The inverse of ``arrange``: (..., h, w, G) int64.

        Args:
            tokens: what ``arrange`` gives, or a model has made.
            grid: (h, w); default: square. Not needed for the order "grid", or with counts.
            counts: (h, w), of a single sequence without the groups that were left out: how many each position has.

        Raises:
            ValueError: a length that does not fit, or with "offset" a token outside its group's numbers.
        """
        if counts is not None and self.order != "grid":
            tokens = restored(tokens, counts, self.groups, by_group=self.order == "raster")
        elif self.order != "grid":
            height, width = grid or self._square(tokens.shape[-1])
            if tokens.shape[-1] != height * width * self.groups:
                raise ValueError(f"{tokens.shape[-1]} tokens do not fill {height} x {width} x {self.groups}")
            if self.order == "raster":
                tokens = tokens.unflatten(-1, (self.groups, height, width)).movedim(-3, -1)
            else:
                tokens = tokens.unflatten(-1, (height, width, self.groups))
        if self.vocabulary == "offset":
            own = tokens - torch.arange(self.groups, device=tokens.device) * self.codebook_size
            left_out, tokens = tokens < 0, torch.where(tokens < 0, 0, own)
            wrong = tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.codebook_size
            tokens = torch.where(left_out, -1, tokens)
            if wrong:
                raise ValueError("a token lies outside the numbers of its group: mask the model's logits by position")
        return tokens

    def _square(self, length: int) -> tuple[int, int]:
        side = round((length / self.groups) ** 0.5)
        if side * side * self.groups != length:
            raise ValueError(f"{length} tokens of {self.groups} groups are no square: give the grid (h, w)")
        return side, side
