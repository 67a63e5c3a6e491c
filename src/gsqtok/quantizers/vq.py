"""Vector quantization: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937.

Optional: lookup by cosine as in ViT-VQGAN (Yu et al. 2022, arXiv 2110.04627, section 3.2), the rotation trick for the
gradient (Fifty et al. 2024, arXiv 2410.06424), a codebook that starts as cluster centres of the first latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gsqtok.options import Weight
from gsqtok.quantizers.base import GroupedQuantizer, QuantizerOutput, straight_through
from gsqtok.quantizers.codebook import CodebookSize, codebook_and_commitment, nearest_codewords, take_codewords
from gsqtok.quantizers.kmeans import KMeansStart, kmeans
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.quantizers.rotation import rotation_trick
from gsqtok.search import normalize


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
        init: ``"uniform"``: U(-1/V, 1/V); ``"kmeans"``: as uniform until training has seen 4 latents a codeword (of
            groups), whose cluster centres then become the codewords; see ``Quantizer.update``.
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
        self.start = KMeansStart(size) if self.init == "kmeans" else None

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

    @property
    def follows(self) -> bool:
        """See ``Quantizer.follows``."""
        return self.training and self.codebook.requires_grad and self.start is not None and self.start.pending

    def move(self, latent: Tensor, indices: Tensor) -> None:
        """See ``Quantizer.update``: the start by k-means."""
        assert self.start is not None
        rows = self.start.gather(self._normalize(self.split(latent))[indices >= 0])
        if rows is not None:
            self.codebook.copy_(kmeans(rows, self.codebook_size))

    def _search(self, latent: Tensor) -> Tensor:
        return nearest_codewords(latent, self.codebook, self.metric)

    def _codewords(self, indices: Tensor) -> Tensor:
        """(...,) -> (..., d)."""
        return self._normalize(take_codewords(self.codebook, indices))

    def _normalize(self, x: Tensor) -> Tensor:
        return normalize(x) if self.metric == "cosine" else x
