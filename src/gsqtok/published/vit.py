"""The transformer that TiTok and BSQ-ViT share: pre-norm blocks as in CLIP, with PyTorch's own attention."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class Block(nn.Module):
    """Self-attention and a two-layer perceptron, each after a layer norm and added to its input."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, hidden)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(hidden, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> the same shape."""
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


def transformer(width: int, layers: int, heads: int, hidden: int) -> nn.Sequential:
    """So many blocks one after the other."""
    return nn.Sequential(*(Block(width, heads, hidden) for _ in range(layers)))
