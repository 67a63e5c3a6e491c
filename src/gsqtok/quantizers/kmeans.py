"""A codebook that starts as the cluster centres of the first latents: k-means (Lloyd 1982) over all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gsqtok.distributed import rank_and_size, sum_over_ranks
from gsqtok.quantizers.codebook import nearest_codewords
from gsqtok.quantizers.statistics import clusters

LATENTS_PER_CODEWORD = 4  # that are gathered first: with as many latents as codewords nothing would be clustered
ITERATIONS = 8


class KMeansStart(nn.Module):
    """Gathers latents over training steps until there are enough of them.

    Whether that is done is saved; what is gathered is not, so that a run that is interrupted before gathers anew.
    """

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.needed = LATENTS_PER_CODEWORD * codebook_size
        self.done = nn.Buffer(torch.tensor(0))
        self._pending: bool | None = None  # what ``done`` says; looking there makes the host wait for the device
        self._gathered: list[Tensor] = []

    @property
    def pending(self) -> bool:
        """Whether the start is still to come."""
        if self._pending is None:
            self._pending = not self.done.item()
        return self._pending

    def gather(self, rows: Tensor) -> Tensor | None:
        """Add this rank's latents (N, d); once all ranks have enough, this rank's are returned, and gathering ends."""
        self._gathered.append(rows)
        _, ranks = rank_and_size()
        enough = ranks * sum(map(len, self._gathered)) >= self.needed
        if sum_over_ranks(torch.tensor(int(enough), device=rows.device)) < ranks:
            return None
        gathered = torch.cat(self._gathered)
        self._gathered, self._pending = [], False
        self.done.fill_(1)
        return gathered

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._pending = None


def kmeans(rows: Tensor, codewords: int) -> Tensor:
    """Cluster centres of the latents of all ranks: (N, d) of this rank -> (codewords, d), on each the same.

    They start at different latents. A centre that no latent is nearest to moves to a latent drawn at random.
    """
    rank, ranks = rank_and_size()
    drawn = rows.new_zeros(codewords, rows.shape[1])
    share = drawn[rank::ranks]
    share.copy_(rows[torch.randperm(len(rows), device=rows.device)[: len(share)]])
    centres = sum_over_ranks(drawn)
    for _ in range(ITERATIONS):
        found = clusters(rows, nearest_codewords(rows, centres, "euclidean"), codewords)
        means = torch.where(found.sampled[:, None], found.samples, centres)
        used = found.counts[:, None] > 0
        centres = torch.where(used, found.sums / found.counts[:, None].clamp_min(1), means)
    return centres
