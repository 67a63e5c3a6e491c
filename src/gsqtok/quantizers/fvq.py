"""FVQ: a codebook through VQBridge while it trains. Chang et al. 2025, https://arxiv.org/abs/2509.10140."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.options import Count, Natural
from gsqtok.quantizers.codebook import CodebookSize
from gsqtok.quantizers.learnt import LearntCodebook
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.quantizers.vq import VQ, plain_vq


@register_quantizer("fvq")
@dataclass(eq=False, repr=False, kw_only=True)
class FVQ(LearntCodebook):
    """Vector quantization whose codewords come out of a network over the whole codebook.

    VQBridge compresses: ``patch`` neighbouring codewords become one token of ``width`` channels; processes: transformer
    blocks over all tokens; and recovers: each token becomes ``patch`` codewords again, which are added to what came in.
    So every step's gradient reaches every codeword. The bridge is for training alone: a tokenizer is saved with the
    codewords that come out of it as the codebook of a plain ``vq``.

    The paper's description leaves open how codewords make a token and how the bridge starts; here neighbours are
    joined, and the last layer starts near 0, so that the codewords start near N(0, 1 / d).

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G, which share the codebook; each position gets G tokens.
        codebook_size: number of codewords V, a multiple of ``patch``.
        patch: codewords that a token of the bridge stands for; attention is over V / patch tokens.
        width: channels of a token, a multiple of ``heads``.
        blocks: transformer blocks.
        heads: of their attention.
        commitment_weight, gradient, orthogonal_weight: as in ``LearntCodebook``.
        nested, nested_full, nested_mixed, filler: as in ``GroupedQuantizer``.

    Losses: ``codebook``, ``commitment``, as in ``VQ``.

    Raises:
        ValueError: ``dim`` is no multiple of ``groups``, V none of ``patch``, or a value is out of its range.
    """

    codebook_size: CodebookSize = 8192
    patch: Count = 32
    width: Count = 256
    blocks: Natural = 2
    heads: Count = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        size, d = self.codebook_size, self.group_dim
        if size % self.patch:
            raise ValueError(f"codebook_size must be a multiple of patch, got {size} and {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        self.codebook = nn.Parameter(torch.randn(size, d) * d**-0.5)
        self.compress = nn.Linear(self.patch * d, self.width)
        self.process = nn.ModuleList(_Block(self.width, self.heads) for _ in range(self.blocks))
        self.recover = nn.Linear(self.width, self.patch * d)
        nn.init.normal_(self.recover.weight, std=0.02 / self.width**0.5)
        nn.init.zeros_(self.recover.bias)
        self.start_by_kmeans(False)

    def book(self) -> Tensor:
        """See ``LearntCodebook.book``."""
        weight = self.compress.weight
        tokens = self.compress(self.codebook.to(weight).view(-1, self.patch * self.group_dim))
        for block in self.process:
            tokens = block(tokens)
        recovered: Tensor = self.recover(tokens)
        return self.codebook.float() + recovered.float().view_as(self.codebook)

    @property
    def unit_rows(self) -> bool | None:
        """See ``LearntCodebook.unit_rows``."""
        return False

    def plain(self) -> VQ:
        """See ``Quantizer.plain``."""
        return plain_vq(self)


class _Block(nn.Module):
    """A transformer block with its norms first (Dosovitskiy et al. 2021, arXiv 2010.11929): (tokens, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).view(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)
        attended = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        x = x + self.out(attended.transpose(0, 1).flatten(1))
        expanded: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + expanded
