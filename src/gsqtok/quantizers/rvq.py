"""Residual vector quantization: SoundStream, Zeghidour et al. 2021, https://arxiv.org/abs/2107.03312, section III-C."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.quantizers.base import Quantizer, QuantizerOutput, group_size, not_below, straight_through
from gsqtok.quantizers.codebook import nearest_codewords, take_codewords
from gsqtok.quantizers.registry import register_quantizer
from gsqtok.quantizers.sphere import residual_stages
from gsqtok.quantizers.vq import VQ


@register_quantizer("rvq")
class RVQ(Quantizer):
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

    def __init__(
        self,
        dim: int,
        groups: int = 1,
        stages: int = 4,
        codebook_size: int = 1024,
        init: Literal["uniform", "kmeans"] = "uniform",
        stage_dropout: float = 0.0,
        commitment_weight: float = 0.25,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.groups = groups
        self.stages = int(not_below("stages", stages, 1))
        self.tokens_per_position = groups * stages
        self.codebook_size = codebook_size
        self.init = init
        if not 0 <= stage_dropout <= 1:
            raise ValueError(f"stage_dropout must be from 0 to 1, got {stage_dropout}")
        self.stage_dropout = stage_dropout
        self.commitment_weight = commitment_weight
        self.quantizers = nn.ModuleList(self._stage(stage) for stage in range(stages))

    def _stage(self, stage: int) -> VQ:
        return VQ(self.dim, self.groups, self.codebook_size, init=self.init, commitment_weight=self.commitment_weight)

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        residual, indices, loss, losses = latent, [], latent.new_zeros(()), {}
        for quantizer in self.quantizers:
            out = quantizer.quantize(residual)
            residual = residual - quantizer.lookup(out.indices).detach()
            indices.append(out.indices)
            loss = loss + out.loss
            losses = {name: losses.get(name, 0) + value for name, value in out.losses.items()}
        indices = torch.stack(indices, dim=-1).flatten(-2)
        stages_kept = self._draw_stages(latent) if self.training and self.stage_dropout else None
        return QuantizerOutput(straight_through(latent, self._sum(indices, stages_kept)), indices, loss, losses)

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.decode``: the sum of the stages."""
        return self._sum(indices, None)

    def decode_first(self, indices: Tensor, stages: int) -> Tensor:
        """Values of the first stages only: (..., tokens_per_position) integers -> (..., dim) float32.

        Raises:
            ValueError, TypeError: as ``decode``, and where there are not that many stages.
        """
        if not 1 <= stages <= self.stages:
            raise ValueError(f"stages must be from 1 to {self.stages}, got {stages}")
        self.decode(indices)
        return self._sum(indices.long(), torch.tensor(stages, device=indices.device))

    @torch.no_grad()
    def observe(self, latent: Tensor, indices: Tensor) -> None:
        """k-means of the stages in turn, each on what the moved codewords of those before it leave."""
        if all(quantizer.kmeans_left == 0 for quantizer in self.quantizers):
            return
        valid, residual = (indices >= 0).all(-1, keepdim=True), latent
        for quantizer in self.quantizers:
            quantizer.observe(residual, torch.where(valid, quantizer.quantize(residual).indices, -1))
            residual = residual - quantizer.lookup(quantizer.quantize(residual).indices)

    def _by_stage(self, indices: Tensor) -> Iterator[Tensor]:
        return iter(indices.unflatten(-1, (self.groups, self.stages)).unbind(-1))

    def _sum(self, indices: Tensor, stages_kept: Tensor | None) -> Tensor:
        """Sum of the stages, or of the first ``stages_kept``, a tensor that broadcasts with (..., dim)."""
        total: Tensor | float = 0.0
        for stage, (quantizer, of_stage) in enumerate(zip(self.quantizers, self._by_stage(indices), strict=True)):
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

    def __init__(
        self,
        dim: int,
        groups: int = 1,
        stages: int = 4,
        codebook_size: int = 1024,
        stage_dropout: float = 0.0,
        commitment_weight: float = 0.25,
    ) -> None:
        if group_size(dim, groups) < 2:
            raise ValueError(f"a sphere needs groups of at least 2 channels, got dim = {dim}, groups = {groups}")
        super().__init__(
            dim, groups, stages, codebook_size, stage_dropout=stage_dropout, commitment_weight=commitment_weight
        )

    def _stage(self, stage: int) -> VQ:
        radius, _ = residual_stages(self.dim // self.groups, self.codebook_size, stage + 1)[-1]
        return _SphericalStage(self.dim, self.groups, self.codebook_size, self.commitment_weight, radius)

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        return super().quantize(F.normalize(latent.unflatten(-1, (self.groups, -1)), dim=-1).flatten(-2))


class _SphericalStage(VQ):
    """A stage that searches by direction and hands on the raw codeword."""

    def __init__(self, dim: int, groups: int, codebook_size: int, commitment_weight: float, radius: float) -> None:
        super().__init__(dim, groups, codebook_size, commitment_weight=commitment_weight)
        self.radius = radius
        with torch.no_grad():
            self.codebook.copy_(radius * F.normalize(torch.randn_like(self.codebook), dim=-1))

    def _search(self, latent: Tensor) -> Tensor:
        return nearest_codewords(latent, self.codebook, "cosine")

    def _codewords(self, indices: Tensor) -> Tensor:
        return take_codewords(self.codebook, indices)
