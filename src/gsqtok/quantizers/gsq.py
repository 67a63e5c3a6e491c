"""Grouped Spherical Quantization: https://arxiv.org/abs/2412.02632.

A latent of D channels is split into G groups of d = D / G; all groups share one codebook of V codewords. Lookup
compares l2-normalised sides, so it is a search for the largest inner product on the sphere S^(d-1). The codebook starts
uniformly on that sphere. No entropy loss is needed.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.quantizers.base import Quantizer, QuantizerOutput, group_size, not_below, one_of, straight_through
from gsqtok.quantizers.codebook import codebook_and_commitment, nearest_codewords, take_codewords
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.quantizers.soft_assignment import sample_codewords, softmax_entropies
from gsqtok.search import rounded

Norm = Literal["l2", "l1", "none", "clip"]
ROUNDED = {"float32": torch.float32, "bf16": torch.bfloat16}  # searches by a matrix of distances


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
        entropy_weight: weight of an entropy loss, E[H(q(z))] - H(E[q(z)]) with q the softmax over the codewords of
            -|zn - cn|^2 / ``temperature``; the paper finds that it does not help. Training only.
        coding_rate_weight: weight of a loss that spreads the codewords' directions; see ``coding_rate_gap``.
        temperature: of that softmax.
        sample: draw the index from that softmax in training, instead of taking the nearest codeword.
        search: ``"exact"``, or ``"float32"`` or ``"bf16"``: the matrix of distances in that precision, as the original
            implementation computes it (bf16 under autocast). For studying what that rounding does; slower.

    Losses: ``codebook`` = mse(codeword, sg(zn)) with weight 1, ``commitment`` = mse(sg(codeword), zn), where zn is the
    normalised latent; with their weights ``sample_entropy``, ``batch_entropy`` (nats) and ``coding_rate``. The
    straight-through gradient passes through zn.

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
        entropy_weight: float = 0.0,
        coding_rate_weight: float = 0.0,
        temperature: float = 0.01,
        sample: bool = False,
        search: Literal["exact", "float32", "bf16"] = "exact",
    ) -> None:
        super().__init__()
        d = group_size(dim, groups)
        norm = one_of("norm", norm or ("l2" if d > 1 else "clip"), ("l2", "l1", "none", "clip"))
        if d == 1 and norm in ("l2", "l1"):
            raise ValueError(f"norm '{norm}' leaves only the sign of groups of one channel; use clip or none")
        if d > 1 and norm == "clip":
            raise ValueError(f"norm 'clip' is for groups of one channel, these have {d}; use l2, l1 or none")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.dim = dim
        self.groups = groups
        self.tokens_per_position = groups
        self.codebook_size = not_below("codebook_size", codebook_size, 2)
        self.norm = norm
        self.init = one_of("init", init, ("sphere", "uniform"))
        self.output = one_of("output", output, ("raw", "normalized"))
        self.commitment_weight = not_below("commitment_weight", commitment_weight, 0)
        self.entropy_weight = not_below("entropy_weight", entropy_weight, 0)
        self.coding_rate_weight = not_below("coding_rate_weight", coding_rate_weight, 0)
        self.temperature = temperature
        self.sample = sample
        self.search = one_of("search", search, ("exact", *ROUNDED))
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
        if self.sample and self.training:
            rows = latent.reshape(-1, self.group_dim)
            codebook = self._normalize(self.codebook.float())
            indices = sample_codewords(rows, codebook, self.temperature).view(latent.shape[:-1])
        elif self.search in ROUNDED:
            rows = latent.detach().reshape(-1, self.group_dim)
            indices = rounded.nearest(rows, self._normalize(self.codebook.detach().float()), ROUNDED[self.search])
            indices = indices.view(latent.shape[:-1])
        elif self.norm == "l2":
            indices = nearest_codewords(latent, self.codebook, "cosine")  # which normalises, and in higher precision
        else:
            indices = nearest_codewords(latent, self._normalize(self.codebook.float()), "euclidean")
        codewords = self._codewords(indices)
        loss, losses = codebook_and_commitment(latent, codewords, self.commitment_weight)
        if self.entropy_weight and self.training:
            rows = latent.reshape(-1, self.group_dim)
            sample, batch = softmax_entropies(rows, self._normalize(self.codebook.float()), self.temperature)
            losses |= {"sample_entropy": sample, "batch_entropy": batch}
            loss = loss + self.entropy_weight * (sample - batch)
        if self.coding_rate_weight:
            losses["coding_rate"] = coding_rate_gap(self.codebook.float())
            loss = loss + self.coding_rate_weight * losses["coding_rate"]
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


def coding_rate_gap(codebook: Tensor, distortion: float = 0.5) -> Tensor:
    """How far the total coding rate of the codewords' directions stays below its maximum: (V, d) -> scalar, nats, >= 0.

    R = 1/2 log det(I + d / (V e^2) C^T C) (Yu et al. 2020, arXiv 2006.08558, section 2) of the l2-normalised codewords
    C is largest, d/2 log(1 + 1 / e^2), where no direction is preferred. The loss is the difference, so that less is
    better and 0 is best.
    """
    directions = F.normalize(codebook, dim=-1)
    count, d = directions.shape
    gram = directions.T @ directions * (d / (count * distortion**2))
    rate = torch.linalg.slogdet(torch.eye(d, device=gram.device) + gram).logabsdet / 2
    return d / 2 * math.log1p(1 / distortion**2) - rate
