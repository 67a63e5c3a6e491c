"""Statistics of a batch over all ranks, for codebooks and losses that look at more than one latent."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gsqtok.distributed import rank_and_size, sum_over_ranks


class Clusters(NamedTuple):
    """What the latents of a batch, on all ranks, say about each codeword.

    Attributes:
        counts: (V,) float32, how many latents chose it.
        sums: (V, d) float32, their sum.
        samples: (V, d) float32, a latent drawn at random for it, to move it to.
        sampled: (V,) bool, whether there was one.
    """

    counts: Tensor
    sums: Tensor
    samples: Tensor
    sampled: Tensor


def clusters(rows: Tensor, indices: Tensor, codebook_size: int) -> Clusters:
    """Counts, sums and random samples for every codeword, in one all-reduce.

    Args:
        rows: (N, d) float32, this rank's latents.
        indices: (N,) int64, the codeword of each; rows of index -1 do not count.
        codebook_size: V.
    """
    valid = indices >= 0
    rows = torch.where(valid[:, None], rows, 0)
    columns = torch.cat([valid[:, None].to(rows.dtype), rows], dim=1)
    totals = columns.new_zeros(codebook_size, columns.shape[1]).index_add_(0, indices.clamp_min(0), columns)
    # Every rank draws for its share of the codewords, so that all ranks agree on the draw without a broadcast.
    rank, ranks = rank_and_size()
    if len(rows):
        draw = torch.randint(len(rows), (codebook_size,), device=rows.device)
        mine = torch.arange(codebook_size, device=rows.device) % ranks == rank
        samples = columns[draw] * mine[:, None]
    else:
        samples = torch.zeros_like(totals)
    totals, samples = sum_over_ranks(torch.cat([totals, samples], dim=1)).chunk(2, dim=1)
    return Clusters(totals[:, 0], totals[:, 1:], samples[:, 1:], samples[:, 0] > 0)
