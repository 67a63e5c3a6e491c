"""Softmax over the codewords of a stored codebook, in blocks: its entropies, and drawing from it.

All take q(j | z) ~ exp(-|z - c_j|^2 / temperature). Blocks of latents bound the memory, also on the way back, at the
price of computing each block twice; time grows with N x V, so these are options for codebooks of moderate size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gsqtok.distributed import mean_over_ranks

BLOCK = 2**24  # latents times codewords at once: 64 MiB of float32


def softmax_entropies(latent: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean entropy of each latent's assignment, and entropy of the mean assignment over all ranks.

    Source: the two terms of the entropy loss of Yu et al. 2024, arXiv 2310.05737, equation 5.

    Args:
        latent: (N, d) float32.
        codebook: (V, d) float32.
        temperature: of the softmax, above 0.

    Returns:
        Both in nats, with gradients to the latent and the codebook; 0 for an empty batch.
    """
    entropy, mass = latent.new_zeros(()), latent.new_zeros(len(codebook))
    for block in _blocks(latent, len(codebook)):
        of_block, mass_of_block = checkpoint(_block_entropies, block, codebook, temperature, use_reentrant=False)
        entropy, mass = entropy + of_block, mass + mass_of_block
    samples = max(len(latent), 1)
    mean = mean_over_ranks(mass / samples)
    return entropy / samples, -torch.xlogy(mean, mean.clamp_min(1e-30)).sum()


@torch.no_grad()
def sample_codewords(latent: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    """Draw a codeword for every latent from the softmax: (N, d), (V, d) -> int64 (N,).

    The largest of the logits plus independent Gumbel noise is such a draw (Gumbel 1954).
    """
    drawn = [latent.new_zeros(0, dtype=torch.int64)]
    for block in _blocks(latent, len(codebook)):
        logits = _logits(block, codebook, temperature)
        drawn.append((logits - torch.empty_like(logits).exponential_().log()).argmax(-1))
    return torch.cat(drawn)


def _blocks(latent: Tensor, codewords: int) -> tuple[Tensor, ...]:
    return latent.split(max(1, BLOCK // codewords)) if len(latent) else ()


def _logits(latent: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    """-|z - c|^2 / temperature, up to a term that is the same for all codewords: (n, d), (V, d) -> (n, V)."""
    return (2 * latent @ codebook.T - codebook.square().sum(-1)) / temperature


def _block_entropies(latent: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    log_p = _logits(latent, codebook, temperature).log_softmax(-1)
    p = log_p.exp()
    return -(p * log_p).sum(), p.sum(0)
