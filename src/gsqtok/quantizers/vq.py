"""Vector quantization: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937.

Optional: lookup by cosine as in ViT-VQGAN (Yu et al. 2022, arXiv 2110.04627, section 3.2), the rotation trick for the
gradient (Fifty et al. 2024, arXiv 2410.06424), a codebook that starts as cluster centres of the first batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.options import Weight
from gsqtok.quantizers.base import GroupedQuantizer, QuantizerOutput, straight_through
from gsqtok.quantizers.codebook import CodebookSize, codebook_and_commitment, nearest_codewords, take_codewords
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.quantizers.rotation import rotation_trick
from gsqtok.quantizers.statistics import clusters

KMEANS_BATCHES = 4  # a compiled model is compiled once for each of them


@register_quantizer("vq")
@dataclass(eq=False, repr=False, kw_only=True)
class VQ(GroupedQuantizer):
    """Plain vector quantization with a codebook that is trained by its own loss.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        groups: number of groups G, which share the codebook, as in GSQ; each position gets G tokens.
        codebook_size: number of codewords V.
        metric: ``"euclidean"``: the nearest codeword; ``"cosine"``: both sides are l2-normalised, and so is the
            codeword that the decoder gets.
        init: ``"uniform"``: U(-1/V, 1/V); ``"kmeans"``: as uniform until the first training batch, whose latents
            replace the codewords at random; that and the next batches then also move the codewords to their latents'
            running means (mini-batch k-means, Sculley 2010), 4 batches in all.
        gradient: how the decoder's gradient reaches the latent: ``"straight_through"`` or ``"rotation"``.
        commitment_weight: weight of the commitment loss beside the codebook loss.

    Losses: ``codebook``, ``commitment`` (equation 3).

    Raises:
        ValueError: ``dim`` is no multiple of ``groups``, or a value is out of its range.
    """

    codebook_size: CodebookSize = 8192
    metric: Literal["euclidean", "cosine"] = "euclidean"
    init: Literal["uniform", "kmeans"] = "uniform"
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    commitment_weight: Weight = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_dim == 1 and self.metric == "cosine":
            raise ValueError("metric 'cosine' leaves only the sign of groups of one channel; use euclidean")
        size = self.codebook_size
        self.codebook = nn.Parameter(torch.empty(size, self.group_dim).uniform_(-1 / size, 1 / size))
        self.kmeans_left = KMEANS_BATCHES if self.init == "kmeans" else 0
        if self.init == "kmeans":
            self.kmeans_counts = nn.Buffer(torch.zeros(size))
            self.kmeans_done = nn.Buffer(torch.tensor(0))
            self.register_load_state_dict_post_hook(_resume_kmeans)

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        latent = self._normalize(self.split(latent))
        indices = self._search(latent)
        codewords = self._codewords(indices)
        loss, losses = codebook_and_commitment(latent, codewords, self.commitment_weight)
        through = rotation_trick if self.gradient == "rotation" else straight_through
        return QuantizerOutput(through(latent, codewords).flatten(-2), indices, loss, losses)

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.decode``."""
        return self._codewords(indices).flatten(-2)

    @torch.no_grad()
    def observe(self, latent: Tensor, indices: Tensor) -> None:
        """One step of mini-batch k-means, in the first training batches if ``init`` is ``"kmeans"``."""
        if self.kmeans_left == 0:
            return
        rows = self._normalize(self.split(latent)).reshape(-1, self.group_dim)
        if self.kmeans_left == KMEANS_BATCHES:
            drawn = clusters(rows, indices.flatten(), self.codebook_size)
            self.codebook.copy_(torch.where(drawn.sampled[:, None], drawn.samples, self.codebook))
            valid = indices.flatten() >= 0
            indices = torch.where(valid, nearest_codewords(rows, self.codebook, "euclidean"), -1)
        batch = clusters(rows, indices.flatten(), self.codebook_size)
        total = self.kmeans_counts + batch.counts
        mean = (self.codebook * self.kmeans_counts[:, None] + batch.sums) / total[:, None].clamp_min(1)
        self.codebook.copy_(torch.where(batch.counts[:, None] > 0, mean, self.codebook))
        self.kmeans_counts.copy_(total)
        self.kmeans_done += 1
        self.kmeans_left -= 1

    def _search(self, latent: Tensor) -> Tensor:
        return nearest_codewords(latent, self.codebook, self.metric)

    def _codewords(self, indices: Tensor) -> Tensor:
        """(...,) -> (..., d)."""
        return self._normalize(take_codewords(self.codebook, indices))

    def _normalize(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.metric == "cosine" else x


def _resume_kmeans(quantizer: VQ, incompatible_keys: object) -> None:
    """Go on where a loaded state was: a count on the host, since looking at the device's would wait for it."""
    quantizer.kmeans_left = KMEANS_BATCHES - int(quantizer.kmeans_done)
