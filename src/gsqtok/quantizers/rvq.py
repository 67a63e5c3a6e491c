"""Residual vector quantization: SoundStream, Zeghidour et al. 2021, https://arxiv.org/abs/2107.03312, section III-C."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from gsqtok.options import Weight
from gsqtok.quantizers.base import QuantizerOutput
from gsqtok.quantizers.codebook import CodebookSize, nearest_codewords, take_codewords
from gsqtok.quantizers.kmeans import KMeansStart, kmeans
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.quantizers.residual import ResidualQuantizer
from gsqtok.quantizers.sphere import residual_stages
from gsqtok.quantizers.vq import VQ
from gsqtok.search import normalize


@register_quantizer("rvq")
@dataclass(eq=False, repr=False, kw_only=True)
class RVQ(ResidualQuantizer):
    """Residual vector quantization: each stage quantizes, and is trained on, what the stages before it left.

    Tokens are ordered by group, then by stage: index t = group * stages + stage.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G, which share the codebooks; each position gets G times ``stages`` tokens.
        stages: number of stages S, each with a codebook of its own.
        codebook_size: codewords V of each stage.
        init: ``"uniform"`` or ``"kmeans"``, as in ``VQ``.
        stage_dropout, gradient: as in ``ResidualQuantizer``.
        commitment_weight: weight of the commitment losses.

    Losses: ``codebook``, ``commitment``, summed over stages.
    """

    codebook_size: CodebookSize = 1024
    init: Literal["uniform", "kmeans"] = "uniform"
    commitment_weight: Weight = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        self.start = KMeansStart(self.codebook_size) if self.init == "kmeans" else None

    def _stage(self, stage: int) -> VQ:
        return VQ(self.inner_dim, **self._of_stages())

    def _of_stages(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("groups", "codebook_size", "commitment_weight")}

    @property
    def follows(self) -> bool:
        """See ``Quantizer.follows``."""
        trained = all(parameter.requires_grad for parameter in self.parameters())
        return self.training and trained and self.start is not None and self.start.pending

    def move(self, latent: Tensor, indices: Tensor) -> None:
        """See ``Quantizer.update``: k-means of the stages in turn, each on what those before it leave."""
        assert self.start is not None
        found = indices.unflatten(-1, (self.groups, self.stages))[..., 0] >= 0
        residual = self.start.gather(self.split(latent)[found])
        if residual is not None:
            for stage in cast("list[VQ]", list(self.quantizers)):
                stage.codebook.copy_(kmeans(residual, self.codebook_size))
                nearest = nearest_codewords(residual, stage.codebook, "euclidean")
                residual = residual - take_codewords(stage.codebook, nearest)


@register_quantizer("rsq")
@dataclass(eq=False, repr=False, kw_only=True)
class RSQ(RVQ):
    """Residual spherical quantization: RVQ with GSQ's start and lookup in every stage, a fair rival of it.

    The first stage is GSQ's: a latent normalised by group, codewords uniform on the sphere, lookup by angle, the raw
    codeword as value. Later stages look their residual up by its direction alone; their codewords start uniformly on a
    sphere of the radius that a random code of this size leaves to be corrected, and their lengths are learnt.

    Args:
        dim: channels D of the latent, a multiple of ``groups``, at least 2 a group.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G, which share the codebooks; each position gets G times ``stages`` tokens.
        stages: number of stages S, each with a codebook of its own.
        codebook_size: codewords V of each stage.
        stage_dropout, gradient: as in ``ResidualQuantizer``.
        commitment_weight: weight of the commitment losses.

    Losses: ``codebook``, ``commitment``, summed over stages.
    """

    init: Literal["uniform", "kmeans"] = field(init=False, default="uniform")
    least_group_dim = 2

    def _stage(self, stage: int) -> VQ:
        radius, _ = residual_stages(self.group_dim, self.codebook_size, stage + 1)[-1]
        return _SphericalStage(self.inner_dim, radius=radius, **self._of_stages())

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        return super().quantize(normalize(self.split(latent)).flatten(-2))


@dataclass(eq=False, repr=False, kw_only=True)
class _SphericalStage(VQ):
    """A stage that searches by direction, starts on a sphere of this radius, and hands on the raw codeword."""

    radius: float

    def __post_init__(self) -> None:
        super().__post_init__()
        with torch.no_grad():
            self.codebook.copy_(self.radius * normalize(torch.randn_like(self.codebook)))

    def assign(self, latent: Tensor, book: Tensor) -> Tensor:
        """See ``LearntCodebook.assign``."""
        return nearest_codewords(latent, book, "cosine")
