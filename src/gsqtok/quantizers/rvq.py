"""Residual vector quantization: SoundStream, Zeghidour et al. 2021, https://arxiv.org/abs/2107.03312, section III-C."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from gsqtok.options import Count, Share, Weight
from gsqtok.quantizers.base import GroupedQuantizer, QuantizerOutput, straight_through
from gsqtok.quantizers.codebook import CodebookSize, nearest_codewords, take_codewords
from gsqtok.quantizers.kmeans import KMeansStart, kmeans
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.quantizers.sphere import residual_stages
from gsqtok.quantizers.vq import VQ
from gsqtok.search import normalize


@register_quantizer("rvq")
@dataclass(eq=False, repr=False, kw_only=True)
class RVQ(GroupedQuantizer):
    """Residual vector quantization: each stage quantizes, and is trained on, what the stages before it left.

    Tokens are ordered by group, then by stage: index t = group * stages + stage.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        groups: number of groups G, which share the codebooks; each position gets G times ``stages`` tokens.
        stages: number of stages S, each with a codebook of its own.
        codebook_size: codewords V of each stage.
        init: ``"uniform"`` or ``"kmeans"``, as in ``VQ``.
        stage_dropout: share of the examples (of the latent's first dimension) for which, in training, the decoder gets
            only the first stages, their number drawn from 1 to S, so that ``decode_first`` gives usable values
            (quantizer dropout). All stages are searched and trained on their residuals all the same.
        commitment_weight: weight of the commitment losses.

    Losses: ``codebook``, ``commitment``, summed over stages.

    Raises:
        ValueError: ``dim`` is no multiple of ``groups``, or a value is out of its range.
    """

    stages: Count = 4
    codebook_size: CodebookSize = 1024
    init: Literal["uniform", "kmeans"] = "uniform"
    stage_dropout: Share = 0.0
    commitment_weight: Weight = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokens_per_position = self.groups * self.stages
        self.start = KMeansStart(self.codebook_size) if self.init == "kmeans" else None
        self.quantizers = nn.ModuleList(self._stage(stage) for stage in range(self.stages))

    def _stage(self, stage: int) -> VQ:
        return VQ(self.dim, **self._of_stages())

    def _of_stages(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("groups", "codebook_size", "commitment_weight")}

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        residual, loss, found = latent, latent.new_zeros(()), []
        losses: dict[str, Tensor] = {}
        for quantizer in self._vqs():
            out = quantizer.quantize(residual)
            residual = residual - quantizer.lookup(out.indices).detach()
            found.append(out.indices)
            loss = loss + out.loss
            losses = {name: losses.get(name, 0) + value for name, value in out.losses.items()}
        indices = torch.stack(found, dim=-1).flatten(-2)
        stages_kept = self._draw_stages(latent) if self.training and self.stage_dropout else None
        return QuantizerOutput(straight_through(latent, self._sum(indices, stages_kept)), indices, loss, losses)

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.decode``: the sum of the stages."""
        return self._sum(indices, None)

    def decode_first(self, indices: Tensor, *, stages: int) -> Tensor:
        """Values of the first stages only: (..., tokens_per_position) integers -> (..., dim) float32.

        Raises:
            ValueError, TypeError: as ``decode``, and where there are not that many stages.
        """
        if not 1 <= stages <= self.stages:
            raise ValueError(f"stages must be from 1 to {self.stages}, got {stages}")
        self.decode(indices)
        return self._sum(indices.long(), torch.tensor(stages, device=indices.device))

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
            for stage in self._vqs():
                stage.codebook.copy_(kmeans(residual, self.codebook_size))
                nearest = nearest_codewords(residual, stage.codebook, "euclidean")
                residual = residual - take_codewords(stage.codebook, nearest)

    def _vqs(self) -> list[VQ]:
        return cast("list[VQ]", list(self.quantizers))

    def _by_stage(self, indices: Tensor) -> Iterator[Tensor]:
        return iter(indices.unflatten(-1, (self.groups, self.stages)).unbind(-1))

    def _sum(self, indices: Tensor, stages_kept: Tensor | None) -> Tensor:
        """Sum of the stages, or of the first ``stages_kept``, a tensor that broadcasts with (..., dim)."""
        total = torch.zeros((), device=indices.device)
        for stage, (quantizer, of_stage) in enumerate(zip(self._vqs(), self._by_stage(indices), strict=True)):
            value = quantizer.lookup(of_stage)
            total = total + (value if stages_kept is None else torch.where(stages_kept > stage, value, 0))
        return total

    def _draw_stages(self, latent: Tensor) -> Tensor:
        examples = latent.shape[:1] if latent.ndim > 1 else ()
        few = torch.rand(examples, device=latent.device) < self.stage_dropout
        drawn = torch.randint(1, self.stages + 1, examples, device=latent.device)
        kept = torch.where(few, drawn, self.stages)
        return kept.view(*examples, *(1,) * (latent.ndim - len(examples)))


@register_quantizer("rsq")
@dataclass(eq=False, repr=False, kw_only=True)
class RSQ(RVQ):
    """Residual spherical quantization: RVQ with GSQ's start and lookup in every stage, a fair rival of it.

    The first stage is GSQ's: a latent normalised by group, codewords uniform on the sphere, lookup by angle, the raw
    codeword as value. Later stages look their residual up by its direction alone; their codewords start uniformly on a
    sphere of the radius that a random code of this size leaves to be corrected, and their lengths are learnt.

    Args:
        dim: channels D of the latent, a multiple of ``groups``, at least 2 a group.
        groups: number of groups G, which share the codebooks; each position gets G times ``stages`` tokens.
        stages: number of stages S, each with a codebook of its own.
        codebook_size: codewords V of each stage.
        stage_dropout: as in ``RVQ``.
        commitment_weight: weight of the commitment losses.

    Losses: ``codebook``, ``commitment``, summed over stages.

    Raises:
        ValueError: ``dim`` is no multiple of ``groups``, or a value is out of its range.
    """

    init: Literal["uniform", "kmeans"] = field(init=False, default="uniform")
    least_group_dim = 2

    def _stage(self, stage: int) -> VQ:
        radius, _ = residual_stages(self.group_dim, self.codebook_size, stage + 1)[-1]
        return _SphericalStage(self.dim, radius=radius, **self._of_stages())

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

    def _search(self, latent: Tensor) -> Tensor:
        return nearest_codewords(latent, self.codebook, "cosine")

    def _codewords(self, indices: Tensor) -> Tensor:
        return take_codewords(self.codebook, indices)
