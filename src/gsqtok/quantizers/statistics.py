"""Statistics of a batch over all ranks, for codebooks and losses that look at more than one latent."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed


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
    world = distributed.get_world_size() if _in_group() else 1
    rank = distributed.get_rank() if _in_group() else 0
    if len(rows):
        draw = torch.randint(len(rows), (codebook_size,), device=rows.device)
        mine = torch.arange(codebook_size, device=rows.device) % world == rank
        samples = columns[draw] * mine[:, None]
    else:
        samples = torch.zeros_like(totals)
    totals, samples = sum_over_ranks(torch.cat([totals, samples], dim=1)).chunk(2, dim=1)
    return Clusters(totals[:, 0], totals[:, 1:], samples[:, 1:], samples[:, 0] > 0)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of ``x`` over all ranks; ``x`` itself where there is one process. No gradient flows."""
    if not _in_group():
        return x
    total = x.detach().clone()
    distributed.all_reduce(total)
    return total


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of ``x`` over all ranks, with the gradient of this rank's own part.

    Data-parallel training averages gradients over the ranks, and the mean of those of f(mean(x)) with respect to each
    rank's x is the gradient of the whole: no second communication is needed on the way back.
    """
    if not _in_group():
        return x
    mean = sum_over_ranks(x) / distributed.get_world_size()
    return mean + (x - x.detach())


def _in_group() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
