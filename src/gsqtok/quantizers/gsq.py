"""Grouped Spherical Quantization: https://arxiv.org/abs/2412.02632.

A latent of D channels is split into G groups of d = D / G; all groups share one codebook of V codewords, or have one
each, as in UniTok (Ma et al. 2025, arXiv 2502.20321) and MGVQ (Jia et al. 2025, arXiv 2507.07997). Lookup compares
l2-normalised sides, so it is a search for the largest inner product on the sphere S^(d-1). The codebook starts
uniformly on that sphere. No entropy loss is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from gsqtok.quantizers.base import LATER
from gsqtok.quantizers.codebook import CodebookSize, nearest_codewords
from gsqtok.quantizers.learnt import LearntCodebook
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.search import normalize


@register_quantizer("gsq")
@dataclass(eq=False, repr=False, kw_only=True)
class GSQ(LearntCodebook):
    """Grouped Spherical Quantization (arXiv 2412.02632, section 3).

    Channel c of the latent belongs to group c // d, as in the official implementation.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G; each position gets G tokens.
        codebook_size: number of codewords V of a codebook.
        codebooks: ``"shared"``, one for all groups, or ``"separate"``, one for each.
        norm: what both sides go through before the lookup: ``"l2"``, ``"l1"``, ``"none"``, or ``"clip"`` to [-1, 1]
            (d = 1 only, the paper's d = 1*). None chooses l2 for d >= 2 and clip for d = 1, where a sphere would hold
            two points only.
        init: ``"sphere"``: l2(N(0, 1)), at d = 1 U(-1, 1); ``"uniform"``: U(-1/V, 1/V); ``"kmeans"``: as sphere until
            training has seen 4 latents a codeword, whose cluster centres, after ``norm``, then become the codewords.
        output: what a decoder gets: ``"raw"``, the codeword as it is stored (after training it has left the sphere; the
            official checkpoints need this), or ``"normalized"``, the codeword after ``norm``.
        commitment_weight: weight of the commitment loss beside the codebook loss (0.25 in the paper).
        gradient, orthogonal_weight: as in ``LearntCodebook``.
        nested, nested_full, nested_mixed, filler: as in ``GroupedQuantizer``.

    Losses: ``codebook`` = mse(codeword, sg(zn)) with weight 1, ``commitment`` = mse(sg(codeword), zn), where zn is the
    normalised latent. The straight-through gradient passes through zn.
    """

    codebook_size: CodebookSize = 8192
    norm: Literal["l2", "l1", "none", "clip"] | None = None
    init: Literal["sphere", "uniform", "kmeans"] = "sphere"
    output: Literal["raw", "normalized"] = "raw"
    codebooks: Literal["shared", "separate"] = field(default="shared", metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        d = self.group_dim
        self.norm = self.norm or ("l2" if d > 1 else "clip")
        if d == 1 and self.norm in ("l2", "l1"):
            raise ValueError(f"norm '{self.norm}' leaves only the sign of groups of one channel; use clip or none")
        if d > 1 and self.norm == "clip":
            raise ValueError(f"norm 'clip' is for groups of one channel, these have {d}; use l2, l1 or none")
        several = (self.groups,) if self.codebooks == "separate" else ()
        self.codebook = nn.Parameter(torch.empty(*several, self.codebook_size, d))
        self.start_by_kmeans(self.init == "kmeans")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the codebook anew, as ``init`` says."""
        if self.codebook.is_meta:  # nothing to draw, for which normal_ would import PyTorch's compiler, in 2 seconds
            return
        with torch.no_grad():
            if self.init == "uniform":
                self.codebook.uniform_(-1 / self.codebook_size, 1 / self.codebook_size)
            elif self.group_dim == 1:
                self.codebook.uniform_(-1, 1)
            else:
                self.codebook.copy_(normalize(self.codebook.normal_()))

    def assign(self, latent: Tensor, book: Tensor) -> Tensor:
        """See ``LearntCodebook.assign``."""
        if self.norm == "l2":
            return nearest_codewords(latent, book, "cosine")  # which normalises, and in higher precision
        return nearest_codewords(self.normalized(latent), self.normalized(book), "euclidean")

    def prepared(self, latent: Tensor) -> Tensor:
        """See ``LearntCodebook.prepared``."""
        return self.normalized(latent)

    def codewords(self, indices: Tensor, book: Tensor) -> Tensor:
        """See ``LearntCodebook.codewords``."""
        codewords = super().codewords(indices, book)
        return self.normalized(codewords) if self.output == "normalized" else codewords

    @property
    def unit_rows(self) -> bool | None:
        """See ``LearntCodebook.unit_rows``."""
        return {"l2": True, "none": False}.get(str(self.norm)) if self.output == "raw" else None

    def normalized(self, x: Tensor) -> Tensor:
        """Rows (..., d), latents or codewords, after ``norm``."""
        if self.norm == "l2":
            return normalize(x)
        if self.norm == "l1":
            return normalize(x, order=1.0)
        if self.norm == "clip":
            return x.clamp(-1, 1)
        return x
