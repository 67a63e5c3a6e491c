"""Index backpropagation quantization: Shi et al. 2024, https://arxiv.org/abs/2412.02692, section 3.2."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.options import Count, Positive
from gsqtok.quantizers.base import QuantizerOutput, straight_through
from gsqtok.quantizers.codebook import CodebookSize, mean_square, nearest_codewords
from gsqtok.quantizers.learnt import Gradient, LearntCodebook
from gsqtok.quantizers.registry import register_quantizer


@register_quantizer("ibq")
@dataclass(eq=False, repr=False, kw_only=True)
class IBQ(LearntCodebook):
    """The codeword of the largest inner product, and a gradient to all codewords through a softmax over them.

    With p = softmax(z C^T / temperature) the decoder gets h C, where h is 1 at the largest p and 0 elsewhere, with the
    gradient of p in the place of h's. No N x V matrix is made: the softmax is computed, and in the backward pass
    computed again, in chunks of codewords. A step takes the time of five products of N x V, and the memory that
    ``working_memory`` names.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G, which share the codebook; each position gets G tokens.
        codebook_size: number of codewords V; they start as U(-1/V, 1/V).
        temperature: of the softmax.
        chunk_mib: memory for a chunk of probabilities, in MiB.
        commitment_weight: weight of the commitment loss.
        orthogonal_weight: as in ``LearntCodebook``.
        nested, nested_full, nested_mixed, filler: as in ``GroupedQuantizer``.

    Losses: the paper's double quantization loss, ``codebook`` = mse(C_i, sg(z)) and ``commitment`` = mse(sg(C_i), z),
    and ``soft`` = mse of z and of what the decoder gets, through the softmax. Their weights are ``commitment_weight``,
    1 and 1.
    """

    codebook_size: CodebookSize = 8192
    temperature: Positive = 1.0
    chunk_mib: Count = 256
    gradient: Gradient = field(init=False, default="straight_through")

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.codebook_size
        self.codebook = nn.Parameter(torch.empty(size, self.group_dim).uniform_(-1 / size, 1 / size))
        self.start_by_kmeans(False)

    def working_memory(self, latents: int) -> int:
        """Bytes that a training step allocates at most for the softmax of so many latents (positions times groups).

        Three chunks of probabilities and their gradients, and a row of d + 1 numbers for each latent and codeword; the
        whole N x V matrix, of which a naive form holds three, would take 4 N V.
        """
        chunk = min(self.codebook_size, self._chunk(latents)) * latents
        return 4 * (3 * chunk + 4 * (latents + self.codebook_size) * (self.group_dim + 1))

    def _chunk(self, latents: int) -> int:
        return max(1, self.chunk_mib * 2**18 // max(1, latents))

    def assign(self, latent: Tensor, book: Tensor) -> Tensor:
        """See ``LearntCodebook.assign``: the largest inner product, neither side being normalised.

        One more coordinate gives all codewords the length of the longest one; the latents' is 0, which leaves products
        as they are. The largest product is then the one of the smallest angle, which the exact search finds.
        """
        double = book.double()
        squares = double.square().sum(1, keepdim=True)
        longest = torch.cat([double, (squares.max() - squares).sqrt()], 1)
        return nearest_codewords(F.pad(latent.double(), (0, 1)), longest, "cosine")

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        latent, book = self.split(latent), self.book()
        indices = self.assign(latent, book)
        hard = self.codewords(indices, book)
        value = straight_through(latent, hard)
        if self.training:
            rows = latent.reshape(-1, self.group_dim) / self.temperature
            soft = soft_codewords(rows, book, self._chunk(len(rows))).view_as(latent)
            value = hard + (soft - soft.detach())
        losses = {
            "codebook": mean_square(hard - latent.detach()),
            "commitment": mean_square(latent - hard.detach()),
            "soft": mean_square(value - latent),
        }
        loss = self.commitment_weight * losses["codebook"] + losses["commitment"] + losses["soft"]
        return self.with_orthogonality(QuantizerOutput(value.flatten(-2), indices, loss, losses), book)


def soft_codewords(latents: Tensor, codebook: Tensor, chunk: int) -> Tensor:
    """softmax(Z C^T) sg(C) of latents Z (N, d) and codewords C (V, d), (N, d), from so many codewords at a time."""
    found: Tensor = _SoftCodewords.apply(latents, codebook, chunk)
    return found


class _SoftCodewords(torch.autograd.Function):
    """The softmax by running maxima and sums, as in FlashAttention; the backward pass computes it again."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, codebook: Tensor, chunk: int) -> Tensor:
        largest = latents.new_full((len(latents), 1), -torch.inf)
        total, weighted = torch.zeros_like(largest), torch.zeros_like(latents)
        for block in codebook.split(chunk):
            logits = latents @ block.T
            now = torch.maximum(largest, logits.amax(1, keepdim=True))
            probabilities, before = logits.sub_(now).exp_(), (largest - now).exp()
            total = total * before + probabilities.sum(1, keepdim=True)
            weighted = weighted * before + probabilities @ block
            largest = now
        mean = weighted / total
        ctx.save_for_backward(latents, codebook, mean, largest + total.log())
        ctx.chunk = chunk
        return mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        latents, codebook, mean, log_total = ctx.saved_tensors
        (gradient,) = gradients
        along_mean = (gradient * mean).sum(1, keepdim=True)
        of_latents, of_codebook = torch.zeros_like(latents), []
        # in place, so that with what is left of the block before there are three chunks at most
        for block in codebook.split(ctx.chunk):
            probabilities = (latents @ block.T).sub_(log_total).exp_()
            of_logits = (gradient @ block.T).sub_(along_mean).mul_(probabilities)
            of_latents = of_latents + of_logits @ block
            of_codebook.append(of_logits.T @ latents)
        return of_latents, torch.cat(of_codebook), None
