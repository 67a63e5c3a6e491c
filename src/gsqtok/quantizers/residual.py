"""Residual quantization, whatever a stage is: each quantizes what the stages before it left.

SoundStream: Zeghidour et al. 2021, https://arxiv.org/abs/2107.03312, section III-C.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from gsqtok.options import Count, Share
from gsqtok.quantizers.base import LATER, GroupedQuantizer, QuantizerOutput
from gsqtok.quantizers.learnt import Gradient, through
from gsqtok.quantizers.nesting import Schedule


@dataclass(eq=False, repr=False, kw_only=True)
class ResidualQuantizer(GroupedQuantizer):
    """Base of the methods of several stages.

    Tokens are ordered by group, then by stage: index t = group * stages + stage.

    Args:
        dim: channels D of the latent, a multiple of ``groups``.
        codebook_dim: as in ``Quantizer``.
        groups: number of groups G; each position gets G times ``stages`` tokens.
        stages: number of stages S.
        stage_dropout: share of the examples (of the latent's first dimension) for which, in training, the decoder gets
            only the first stages, their number drawn from 1 to S, so that ``decode_first`` gives usable values
            (quantizer dropout). All stages are searched and trained on their residuals all the same.
        gradient: ``"straight_through"`` or ``"rotation"``, see `rotation_trick`; of the sum of the stages.
    """

    stages: Count = 4
    stage_dropout: Share = 0.0
    gradient: Gradient = field(default="straight_through", metadata=LATER)
    nested: Schedule | None = field(init=False, default=None)  # type: ignore[misc]  # stage_dropout nests the stages
    nested_full: float = field(init=False, default=0.0)
    nested_mixed: float = field(init=False, default=0.0)
    filler: Literal["learned", "zeros"] = field(init=False, default="zeros")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokens_per_position = self.groups * self.stages
        self.quantizers = nn.ModuleList(self._stage(stage) for stage in range(self.stages))

    @abstractmethod
    def _stage(self, stage: int) -> GroupedQuantizer:
        """The quantizer of a stage, which gets what is left, and with as many groups."""

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        residual, loss, found = latent, latent.new_zeros(()), []
        losses: dict[str, Tensor] = {}
        for quantizer in self._stages():
            out = quantizer.quantize(residual)
            residual = residual - quantizer.lookup(out.indices).detach()
            found.append(out.indices)
            loss = loss + out.loss
            losses = {name: losses.get(name, 0) + value for name, value in out.losses.items()}
        indices = torch.stack(found, dim=-1).flatten(-2)
        stages_kept = self._draw_stages(latent) if self.training and self.stage_dropout else None
        return QuantizerOutput(through(latent, self._sum(indices, stages_kept), self.gradient), indices, loss, losses)

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
        return self.outward(self._sum(indices.long(), torch.tensor(stages, device=indices.device)))

    def _stages(self) -> list[GroupedQuantizer]:
        return cast("list[GroupedQuantizer]", list(self.quantizers))

    def _sum(self, indices: Tensor, stages_kept: Tensor | None) -> Tensor:
        """Sum of the stages, or of the first ``stages_kept``, a tensor that broadcasts with (..., dim)."""
        total = torch.zeros((), device=indices.device)
        by_stage = indices.unflatten(-1, (self.groups, self.stages)).unbind(-1)
        for stage, (quantizer, of_stage) in enumerate(zip(self._stages(), by_stage, strict=True)):
            value = quantizer.lookup(of_stage)
            total = total + (value if stages_kept is None else torch.where(stages_kept > stage, value, 0))
        return total

    def _draw_stages(self, latent: Tensor) -> Tensor:
        examples = latent.shape[:1] if latent.ndim > 1 else ()
        few = torch.rand(examples, device=latent.device) < self.stage_dropout
        drawn = torch.randint(1, self.stages + 1, examples, device=latent.device)
        kept = torch.where(few, drawn, self.stages)
        return kept.view(*examples, *(1,) * (latent.ndim - len(examples)))
