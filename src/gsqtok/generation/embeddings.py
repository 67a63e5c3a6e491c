"""Grouped tokens to vectors, and vectors to logits: by a table for each group, or through the codewords themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gsqtok.generation.arithmetic import Arithmetic, FloatingPoint
from gsqtok.generation.transformer import Linear

MOST_LOGITS = 2**27  # at once, in training and in measuring: 512 MB in float32, and as much for their gradient


class TokenEmbedding(nn.Module, ABC):
    """What stands between tokens (..., G) and the network.

    Args:
        groups: G.
        codebook_size: V.
        width: channels of the network.
        masked: whether ``position`` is told of hidden tokens, for which it then has a vector each.
    """

    masks: Tensor | None

    def __init__(self, groups: int, codebook_size: int, width: int, masked: bool) -> None:
        super().__init__()
        self.groups, self.codebook_size, self.width = groups, codebook_size, width
        masks = nn.Parameter(torch.randn(groups, width) * width**-0.5) if masked else None
        self.register_parameter("masks", masks)  # only what is trained: data-parallel training waits for every gradient

    @abstractmethod
    def position(self, tokens: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Tokens (..., G) of positions -> (..., width); ``hidden`` (..., G) says which the network must not see."""

    @abstractmethod
    def each(self, tokens: Tensor, group: int | None = None) -> Tensor:
        """Tokens (..., G) -> (..., G, width), each by itself; or tokens (...) of one group -> (..., width)."""

    @abstractmethod
    def outputs(self) -> Tensor:
        """Vectors whose products with the network's output are logits: (V, width) for all groups, or (G, V, width)."""

    @abstractmethod
    def logits(self, x: Tensor, outputs: Tensor, group: int) -> Tensor:
        """Outputs (..., width) of a group -> logits (..., V)."""

    def losses(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Nats of each token: outputs (..., G, width) and tokens (..., G) -> (..., G) float32.

        At most ``MOST_LOGITS`` logits are in memory at once; the backward pass computes them again.
        """
        outputs = self.outputs()
        by_group = []
        for group in range(self.groups):
            rows, own = x[..., group, :].reshape(-1, self.width), tokens[..., group].reshape(-1)
            size = max(1, MOST_LOGITS // self.codebook_size)
            if len(rows) <= size:
                by_group.append(self._losses(rows, outputs, own, group))
                continue
            parts = zip(rows.split(size), own.split(size), strict=True)
            by_group.append(
                torch.cat(
                    [checkpoint(self._losses, part, outputs, to, group, use_reentrant=False) for part, to in parts]
                )
            )
        return torch.stack(by_group, -1).view(tokens.shape)

    def _losses(self, rows: Tensor, outputs: Tensor, tokens: Tensor, group: int) -> Tensor:
        return F.cross_entropy(self.logits(rows, outputs, group).float(), tokens, reduction="none")


class TableEmbedding(TokenEmbedding):
    """A vector and a row of the last layer for each codeword of each group: 2 G V width parameters."""

    def __init__(self, groups: int, codebook_size: int, width: int, masked: bool) -> None:
        super().__init__(groups, codebook_size, width, masked)
        self.arithmetic: Arithmetic = FloatingPoint()
        self.table = nn.Parameter(torch.randn(groups, codebook_size, width) * width**-0.5)
        self.last = nn.Parameter(torch.randn(groups, codebook_size, width) * (0.1 * width**-0.5))

    def position(self, tokens: Tensor, hidden: Tensor | None = None) -> Tensor:
        """See `TokenEmbedding`."""
        x = self.each(tokens)
        if hidden is not None:
            assert self.masks is not None
            x = torch.where(hidden[..., None], self.masks, x)
        return x.sum(-2)

    def each(self, tokens: Tensor, group: int | None = None) -> Tensor:
        """See `TokenEmbedding`."""
        if group is not None:
            return F.embedding(tokens, self.table[group])
        offsets = torch.arange(self.groups, device=tokens.device) * self.codebook_size
        return F.embedding(tokens + offsets, self.table.flatten(0, 1))

    def outputs(self) -> Tensor:
        """See `TokenEmbedding`."""
        return self.last

    def logits(self, x: Tensor, outputs: Tensor, group: int) -> Tensor:
        """See `TokenEmbedding`."""
        return self.arithmetic.linear(x, outputs[group])


class CodewordEmbedding(TokenEmbedding):
    """The tokenizer's codewords through projections, for codebooks of any size: no table of V x width is trained.

    A position goes in as its quantized latent. Logits are products with the codewords after a small network, which is
    computed once for all V: near codewords get near logits.

    Args:
        codewords: (G, V, d), or (1, V, d) where the groups share them.
        groups: G.
        width: channels of the network.
        masked: see `TokenEmbedding`.
        chained: whether ``each`` is called, for which it then has a projection.
    """

    codewords: Tensor

    def __init__(self, codewords: Tensor, groups: int, width: int, masked: bool, chained: bool) -> None:
        super().__init__(groups, codewords.shape[1], width, masked)
        self.arithmetic: Arithmetic = FloatingPoint()
        dim = codewords.shape[2]
        self.register_buffer("codewords", codewords.detach().float())
        self.latent = Linear(groups * dim, width)
        self.codeword = Linear(dim, width) if chained else None
        self.first, self.second = Linear(dim + 1, width), Linear(width, width, 0.1)

    def position(self, tokens: Tensor, hidden: Tensor | None = None) -> Tensor:
        """See `TokenEmbedding`."""
        values = self._values(tokens)
        if hidden is None:
            return self.latent(values.flatten(-2))
        assert self.masks is not None
        masks = (hidden[..., None] * self.masks).sum(-2)
        return self.latent(values.masked_fill(hidden[..., None], 0).flatten(-2)) + masks

    def each(self, tokens: Tensor, group: int | None = None) -> Tensor:
        """See `TokenEmbedding`."""
        assert self.codeword is not None
        if group is None:
            return self.codeword(self._values(tokens))
        return self.codeword(F.embedding(tokens, self.codewords[min(group, len(self.codewords) - 1)]))

    def _values(self, tokens: Tensor) -> Tensor:
        if len(self.codewords) == 1:
            return F.embedding(tokens, self.codewords[0])
        offsets = torch.arange(self.groups, device=tokens.device) * self.codebook_size
        return F.embedding(tokens + offsets, self.codewords.flatten(0, 1))

    def outputs(self) -> Tensor:
        """See `TokenEmbedding`."""
        codewords = F.pad(self.codewords, (0, 1), value=1.0)  # the one in place of a bias
        return self.arithmetic.weight(self.second(self.arithmetic.activation(self.first(codewords))))

    def logits(self, x: Tensor, outputs: Tensor, group: int) -> Tensor:
        """See `TokenEmbedding`."""
        return self.arithmetic.linear(x, outputs[min(group, len(outputs) - 1)])
