"""How much of its codebook a tokenizer uses.

A module that counts: feed it batch by batch, on as many processes as you like, and `compute` gives the same metrics as
one process that saw everything. Its state dict holds the counts. It is no metric of torchmetrics, whose import takes
longer than PyTorch's: training counts from the first step on.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor, nn

from gsqtok.distributed import sum_over_ranks
from gsqtok.quantizers import Quantizer

log = logging.getLogger("gsqtok.evaluation")

MAX_COUNTED = 2**24
"""The largest codebook whose usage ``usage_of`` counts: 64 MiB a group."""


class CodebookUsage(nn.Module):
    """Which codewords are used, and how evenly.

    Counts are kept as int32, (groups, codebook_size): 256 MB for 16 groups of 4 million codewords. That leaves room for
    2^31 - 1 positions, over all processes (8 million images of 256 positions); `compute` refuses more.

    `compute` gives a dict of, over all groups pooled (they share the codebook in Grouped Spherical Quantization),

    - ``usage``: codewords used at least once / codebook_size, in [0, 1];
    - ``dead_codes``: codewords never used;
    - ``entropy_bits``: entropy of the codewords' frequencies, in [0, log2(codebook_size)];
    - ``perplexity``: 2 ** entropy_bits, in [1, codebook_size];
    - ``positions``: positions seen;
    - ``tokens``: indices seen, G for each position but for groups that are left out;

    and by group the lists ``usage_per_group`` and ``perplexity_per_group``. Usage can be no more than positions x
    groups / codebook_size, and an entropy counted from few positions is too low: compare at equal ``positions``.

    Args:
        codebook_size: codewords V that an index can name.
        groups: indices G per position.
    """

    counts: Tensor
    positions: Tensor

    def __init__(self, codebook_size: int, groups: int = 1) -> None:
        super().__init__()
        if codebook_size < 1 or groups < 1:
            raise ValueError(f"codebook_size and groups must be at least 1, got {codebook_size} and {groups}")
        self.codebook_size = codebook_size
        self.groups = groups
        self.register_buffer("counts", torch.zeros(groups, codebook_size, dtype=torch.int32))
        self.register_buffer("positions", torch.zeros((), dtype=torch.int64))

    def update(self, indices: Tensor) -> None:
        """Add integer indices (..., G), each in [0, codebook_size). An index of -1, for a group that is left out, does
        not count, nor does a position of them alone, which a quantizer gives to a latent that is not finite.

        Raises:
            TypeError: indices that are not integers.
            ValueError: another number of groups, or an index outside the codebook. On a GPU, where looking would make
                the host wait, an index beyond the codebook stops the process (CUDA's own assertion).
        """
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise TypeError(f"indices must be integers, got {indices.dtype}")
        if indices.ndim < 1 or indices.shape[-1] != self.groups:
            raise ValueError(f"indices must be (..., {self.groups}), got {tuple(indices.shape)}")
        if indices.numel() == 0:
            return
        indices = indices.detach().to(self.counts.device).long().reshape(-1, self.groups)
        if not indices.is_cuda:
            low, high = (int(bound) for bound in indices.aminmax())
            if low < -1 or high >= self.codebook_size:
                raise ValueError(f"indices must lie in [0, {self.codebook_size}), got {low} to {high}")
        found = indices >= 0
        # scatter_add rather than bincount: integers add up the same in any order, and nothing of the codebook's size
        # is allocated for each batch
        self.counts.scatter_add_(1, indices.clamp_min(0).T, found.T.to(self.counts.dtype))
        self.positions += found.any(1).sum()

    def ranked_counts(self, points: int = 1024) -> list[int]:
        """Counts of the codewords over all groups and processes, the largest first, at evenly spaced ranks.

        Every process must call it. The first and the last rank are always among the ``points``.
        """
        counts = sum(group.cpu().long() for group in sum_over_ranks(self.counts)).sort(descending=True).values
        if len(counts) > points:
            counts = counts[torch.linspace(0, len(counts) - 1, points, dtype=torch.float64).round().long()]
        return counts.tolist()

    def reset(self) -> None:
        """Begin anew."""
        self.counts.zero_()
        self.positions.zero_()

    def compute(self) -> dict[str, float | int | list[float]]:
        """The metrics listed above, over all processes; every process must call it.

        Raises:
            ValueError: no index was seen.
            OverflowError: more positions than the counts can hold.
        """
        positions = int(sum_over_ranks(self.positions))
        if positions == 0:
            raise ValueError("no indices to report on: call update(indices) first")
        if positions > torch.iinfo(self.counts.dtype).max:
            raise OverflowError(f"{positions} positions are more than the counts can hold; measure fewer images")
        pooled = torch.zeros(self.codebook_size, dtype=torch.int64)
        usage, perplexity = [], []
        for counts in sum_over_ranks(self.counts):  # one group at a time: float64 counts of all would take much memory
            counts = counts.cpu()  # not every device has float64
            pooled += counts
            usage.append(int((counts > 0).sum()) / self.codebook_size)
            perplexity.append(2 ** _entropy_bits(counts))
        used = int((pooled > 0).sum())
        entropy_bits = _entropy_bits(pooled)
        return {
            "usage": used / self.codebook_size,
            "dead_codes": self.codebook_size - used,
            "entropy_bits": entropy_bits,
            "perplexity": 2**entropy_bits,
            "positions": positions,
            "tokens": int(pooled.sum()),
            "usage_per_group": usage,
            "perplexity_per_group": perplexity,
        }


def usage_of(quantizer: Quantizer, groups: int | None = None) -> CodebookUsage | None:
    """A counter for a quantizer's tokens, of all groups or the first; None for a codebook beyond ``MAX_COUNTED``.

    That is logged once.
    """
    if quantizer.codebook_size <= MAX_COUNTED:
        return CodebookUsage(quantizer.codebook_size, quantizer.tokens_of(groups))
    _say_not_counted(quantizer.name, quantizer.codebook_size)
    return None


@cache
def _say_not_counted(name: str, codebook_size: int) -> None:
    log.warning(
        "codebook usage and perplexity are left out: the %d codewords of %s are more than the %d that are counted",
        *(codebook_size, name, MAX_COUNTED),
    )


def _entropy_bits(counts: Tensor) -> float:
    counts = counts[counts > 0].double()
    frequencies = counts / counts.sum()
    return max(0.0, -(frequencies * frequencies.log2()).sum().item())  # -0.0 for a single codeword
