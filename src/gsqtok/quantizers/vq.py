"""Vector quantization: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937.

Optional: lookup by cosine as in ViT-VQGAN (Yu et al. 2022, arXiv 2110.04627, section 3.2), the rotation trick for the
gradient (Fifty et al. 2024, arXiv 2410.06424), a codebook that starts as cluster centres of the first latents.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gsqtok.quantizers.codebook import CodebookSize, nearest_codewords
from gsqtok.quantizers.learnt import Gradient, LearntCodebook
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.search import normalize


@register_quantizer("vq")
@dataclass(eq=False, repr=False, kw_only=True)
class VQ(LearntCodebook):
    """Plain vector quantization with a codebook that is trained by its own loss.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G, which share the codebook, as in GSQ; each position gets G tokens.
        codebook_size: number of codewords V.
        metric: ``"euclidean"``: the nearest codeword; ``"cosine"``: both sides are l2-normalised, and so is the
            codeword that the decoder gets.
        init: ``"uniform"``: U(-1/V, 1/V); ``"kmeans"``: as uniform until training has seen 4 latents a codeword (of
            groups), whose cluster centres then become the codewords; see ``Quantizer.update``.
        gradient: how the decoder's gradient reaches the latent: ``"straight_through"`` or ``"rotation"``.
        commitment_weight: weight of the commitment loss beside the codebook loss.
        orthogonal_weight: as in ``LearntCodebook``.
        nested, nested_full, nested_mixed, filler: as in ``GroupedQuantizer``.

    Losses: ``codebook``, ``commitment`` (equation 3).
    """

    codebook_size: CodebookSize = 8192
    metric: Literal["euclidean", "cosine"] = "euclidean"
    init: Literal["uniform", "kmeans"] = "uniform"
    gradient: Gradient = "straight_through"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_dim == 1 and self.metric == "cosine":
            raise ValueError("metric 'cosine' leaves only the sign of groups of one channel; use euclidean")
        size = self.codebook_size
        self.codebook = nn.Parameter(torch.empty(size, self.group_dim).uniform_(-1 / size, 1 / size))
        self.start_by_kmeans(self.init == "kmeans")

    def prepared(self, latent: Tensor) -> Tensor:
        """See ``LearntCodebook.prepared``."""
        return normalize(latent) if self.metric == "cosine" else latent

    def assign(self, latent: Tensor, book: Tensor) -> Tensor:
        """See ``LearntCodebook.assign``."""
        return nearest_codewords(latent, book, self.metric)

    def codewords(self, indices: Tensor, book: Tensor) -> Tensor:
        """See ``LearntCodebook.codewords``."""
        return self.prepared(super().codewords(indices, book))

    @property
    def unit_rows(self) -> bool | None:
        """See ``LearntCodebook.unit_rows``."""
        return False if self.metric == "euclidean" else None


def plain_vq(quantizer: LearntCodebook) -> VQ:
    """The plain vector quantizer with the codewords of a method that makes them of something else."""
    names = ("codebook_dim", "groups", "codebook_size", "commitment_weight", "gradient", "orthogonal_weight")
    nesting = ("nested", "nested_full", "nested_mixed", "filler")
    plain = VQ(quantizer.dim, **{name: getattr(quantizer, name) for name in (*names, *nesting)})
    with torch.no_grad():
        plain.codebook = nn.Parameter(quantizer.book().detach().clone())
        if quantizer.codebook_dim is not None:
            plain.project_in, plain.project_out = deepcopy(quantizer.project_in), deepcopy(quantizer.project_out)
        if hasattr(quantizer, "fillers"):
            plain.fillers = nn.Parameter(quantizer.fillers.detach().clone())
    return plain.train(quantizer.training)
