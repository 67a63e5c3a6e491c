"""The tokens of one position, given what the transformer says of it: one interface for three ways.

All three have the same network, a small transformer over the groups, and so the same number of parameters:

- ``parallel``: each group by itself; the groups of a position do not know of each other.
- ``depth``: group after group, each knows those before it (RQ-Transformer, Lee et al. 2022, arXiv 2203.01941). With
  the transformer, which knows the positions before, that is the chain rule: an exact probability of all tokens.
- ``masked``: as parallel, behind a transformer that sees the tokens that are not masked, at any place (MaskGIT,
  Chang et al. 2022, arXiv 2202.04200).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gsqtok.generation.embeddings import TokenEmbedding
from gsqtok.generation.transformer import Linear, Transformer

Pick = Callable[[Tensor], Tensor]
_SEQUENCES = 2**15  # in one call of attention, whose kernels number sequences by 16 bits


class GroupHead(nn.Module):
    """A transformer over the G tokens of a position.

    Args:
        embedding: of the tokens; the head keeps no reference to it.
        layers: of its transformer.
        chained: whether a group knows the tokens of those before it.
    """

    def __init__(self, embedding: TokenEmbedding, layers: int, chained: bool) -> None:
        super().__init__()
        self.chained, self.groups = chained, embedding.groups
        width = embedding.width
        self.position = Linear(width, width)
        self.group = nn.Parameter(torch.randn(embedding.groups, width) * width**-0.5)
        self.transformer = Transformer(width, layers, causal=chained)

    def forward(self, x: Tensor, tokens: Tensor, embedding: TokenEmbedding) -> Tensor:
        """What the transformer says of positions (N, width), and their tokens (N, G) -> outputs (N, G, width)."""
        y = self.position(x)[:, None] + self.group
        if self.chained:
            before = embedding.each(tokens)[:, :-1]
            y = y + torch.cat([torch.zeros_like(y[:, :1]), before.to(y.dtype)], 1)
        return torch.cat([self.transformer(part) for part in y.split(_SEQUENCES)])

    def pick(self, x: Tensor, embedding: TokenEmbedding, outputs: Tensor, pick: Pick) -> Tensor:
        """Tokens (N, G) of positions (N, width), chosen by ``pick``: logits (N, V) of a group -> its tokens (N,).

        Args:
            x: what the transformer says of them.
            embedding: of the tokens.
            outputs: of the embedding.
            pick: called group after group.
        """
        y = self.position(x)[:, None] + self.group
        if not self.chained:
            out = self.transformer(y)
            return torch.stack(
                [pick(embedding.logits(out[:, group], outputs, group)) for group in range(self.groups)], 1
            )
        cache = self.transformer.cache(len(x), self.groups)
        tokens: list[Tensor] = []
        for group in range(self.groups):
            step = y[:, group : group + 1]
            if tokens:
                step = step + embedding.each(tokens[-1], group - 1)[:, None].to(y.dtype)
            out = self.transformer(step, cache=cache)[:, 0]
            tokens.append(pick(embedding.logits(out, outputs, group)))
        return torch.stack(tokens, 1)
