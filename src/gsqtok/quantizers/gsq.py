"""Grouped Spherical Quantization: https://arxiv.org/abs/2412.02632.

A latent of D channels is split into G groups of d = D / G; all groups share one codebook of V codewords. Lookup
compares l2-normalised sides, so it is a search for the largest inner product on the sphere S^(d-1). The codebook starts
uniformly on that sphere. No entropy loss is needed.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.quantizers.base import Quantizer, QuantizerOutput, straight_through
from gsqtok.quantizers.codebook import codebook_and_commitment, nearest_codewords, take_codewords
from gsqtok.quantizers.registry import register_quantizer

Norm = Literal["l2", "l1", "none", "clip"]


@register_quantizer("gsq")
class GSQ(Quantizer):
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

    def __init__(
        self,
        dim: int,
        groups: int = 1,
        codebook_size: int = 8192,
        norm: Norm | None = None,
        init: Literal["sphere", "uniform"] = "sphere",
        output: Literal["raw", "normalized"] = "raw",
        commitment_weight: float = 0.25,
    ) -> None:
        super().__init__()
        if groups < 1 or dim < 1 or dim % groups:
            raise ValueError(f"dim must be a positive multiple of groups, got dim = {dim}, groups = {groups}")
        if codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, got {codebook_size}")
        d = dim // groups
        norm = norm or ("l2" if d > 1 else "clip")
        if norm not in ("l2", "l1", "none", "clip"):
            raise ValueError(f"norm must be l2, l1, none or clip, got '{norm}'")
        if d == 1 and norm in ("l2", "l1"):
            raise ValueError(f"norm '{norm}' leaves only the sign of groups of one channel; use clip or none")
        if d > 1 and norm == "clip":
            raise ValueError(f"norm 'clip' is for groups of one channel, these have {d}; use l2, l1 or none")
        if init not in ("sphere", "uniform"):
            raise ValueError(f"init must be sphere or uniform, got '{init}'")
        if output not in ("raw", "normalized"):
            raise ValueError(f"output must be raw or normalized, got '{output}'")
        if commitment_weight < 0:
            raise ValueError(f"commitment_weight must not be negative, got {commitment_weight}")
        self.dim = dim
        self.groups = groups
        self.tokens_per_position = groups
        self.codebook_size = codebook_size
        self.norm = norm
        self.init = init
        self.output = output
        self.commitment_weight = commitment_weight
        self.codebook = nn.Parameter(torch.empty(codebook_size, d))
        self.reset_parameters()

    @property
    def group_dim(self) -> int:
        """Channels d of one group."""
        return self.codebook.shape[1]

    def reset_parameters(self) -> None:
        """Draw the codebook anew, as ``init`` says."""
        with torch.no_grad():
            if self.init == "uniform":
                self.codebook.uniform_(-1 / self.codebook_size, 1 / self.codebook_size)
            elif self.group_dim == 1:
                self.codebook.uniform_(-1, 1)
            else:
                self.codebook.copy_(F.normalize(self.codebook.normal_(), dim=-1))

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        latent = self._normalize(latent.unflatten(-1, (self.groups, self.group_dim)))
        metric = "cosine" if self.norm == "l2" else "euclidean"
        indices = nearest_codewords(latent, self._normalize(self.codebook.float()), metric)
        codewords = self._codewords(indices)
        loss, losses = codebook_and_commitment(latent, codewords, self.commitment_weight)
        return QuantizerOutput(straight_through(latent, codewords).flatten(-2), indices, loss, losses)

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.decode``."""
        return self._codewords(indices).flatten(-2)

    def _codewords(self, indices: Tensor) -> Tensor:
        """(...,) -> (..., d)."""
        codewords = take_codewords(self.codebook, indices)
        return self._normalize(codewords) if self.output == "normalized" else codewords

    def _normalize(self, x: Tensor) -> Tensor:
        if self.norm == "l2":
            return F.normalize(x, dim=-1)
        if self.norm == "l1":
            return F.normalize(x, p=1.0, dim=-1)
        if self.norm == "clip":
            return x.clamp(-1, 1)
        return x
