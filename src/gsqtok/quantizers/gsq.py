"""Grouped Spherical Quantization: https://arxiv.org/abs/2412.02632.

A latent of D channels is split into G groups of d = D / G; all groups share one codebook of V codewords. Lookup
compares l2-normalised sides, so it is a search for the largest inner product on the sphere S^(d-1). The codebook starts
uniformly on that sphere. No entropy loss is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gsqtok.options import Weight
from gsqtok.quantizers.base import GroupedQuantizer, QuantizerOutput, straight_through
from gsqtok.quantizers.codebook import CodebookSize, codebook_and_commitment, nearest_codewords, take_codewords
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.search import normalize


@register_quantizer("gsq")
@dataclass(eq=False, repr=False, kw_only=True)
class GSQ(GroupedQuantizer):
    """Grouped Spherical Quantization (arXiv 2412.02632, section 3).

    Channel c of the latent belongs to group c // d, as in the official implementation.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        groups: number of groups G; each position gets G tokens.
        codebook_size: number of codewords V, shared by all groups.
        norm: what both sides go through before the lookup: ``"l2"``, ``"l1"``, ``"none"``, or ``"clip"`` to [-1, 1]
            (d = 1 only, the paper's d = 1*). None chooses l2 for d >= 2 and clip for d = 1, where a sphere would hold
            two points only.
        init: ``"sphere"``: l2(N(0, 1)), at d = 1 U(-1, 1); ``"uniform"``: U(-1/V, 1/V).
        output: what a decoder gets: ``"raw"``, the codeword as it is stored (after training it has left the sphere; the
            official checkpoints need this), or ``"normalized"``, the codeword after ``norm``.
        commitment_weight: weight of the commitment loss beside the codebook loss (0.25 in the paper).

    Losses: ``codebook`` = mse(codeword, sg(zn)) with weight 1, ``commitment`` = mse(sg(codeword), zn), where zn is the
    normalised latent. The straight-through gradient passes through zn.

    Raises:
        ValueError: ``dim`` is no multiple of ``groups``, or a value is out of its range.
    """

    codebook_size: CodebookSize = 8192
    norm: Literal["l2", "l1", "none", "clip"] | None = None
    init: Literal["sphere", "uniform"] = "sphere"
    output: Literal["raw", "normalized"] = "raw"
    commitment_weight: Weight = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        d = self.group_dim
        self.norm = self.norm or ("l2" if d > 1 else "clip")
        if d == 1 and self.norm in ("l2", "l1"):
            raise ValueError(f"norm '{self.norm}' leaves only the sign of groups of one channel; use clip or none")
        if d > 1 and self.norm == "clip":
            raise ValueError(f"norm 'clip' is for groups of one channel, these have {d}; use l2, l1 or none")
        self.codebook = nn.Parameter(torch.empty(self.codebook_size, d))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the codebook anew, as ``init`` says."""
        with torch.no_grad():
            if self.init == "uniform":
                self.codebook.uniform_(-1 / self.codebook_size, 1 / self.codebook_size)
            elif self.group_dim == 1:
                self.codebook.uniform_(-1, 1)
            else:
                self.codebook.copy_(normalize(self.codebook.normal_()))

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        latent = self.normalized(self.split(latent))
        indices = self.assign(latent)
        codewords = self._codewords(indices)
        loss, losses = codebook_and_commitment(latent, codewords, self.commitment_weight)
        return QuantizerOutput(straight_through(latent, codewords).flatten(-2), indices, loss, losses)

    def assign(self, latent: Tensor) -> Tensor:
        """Index of the nearest codeword of each normalised latent (..., groups, d): int64 (..., groups)."""
        if self.norm == "l2":
            return nearest_codewords(latent, self.codebook, "cosine")  # which normalises, and in higher precision
        return nearest_codewords(latent, self.normalized(self.codebook.float()), "euclidean")

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.decode``."""
        return self._codewords(indices).flatten(-2)

    def _codewords(self, indices: Tensor) -> Tensor:
        """(...,) -> (..., d)."""
        codewords = take_codewords(self.codebook, indices)
        return self.normalized(codewords) if self.output == "normalized" else codewords

    def normalized(self, x: Tensor) -> Tensor:
        """Rows (..., d), latents or codewords, after ``norm``."""
        if self.norm == "l2":
            return normalize(x)
        if self.norm == "l1":
            return normalize(x, order=1.0)
        if self.norm == "clip":
            return x.clamp(-1, 1)
        return x
