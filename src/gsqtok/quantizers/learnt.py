"""What quantizers with a learnt codebook share: search, losses, ways of the gradient, a start by k-means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from gsqtok.options import Weight
from gsqtok.quantizers.base import LATER, GroupedQuantizer, QuantizerOutput, straight_through
from gsqtok.quantizers.codebook import codebook_and_commitment, nearest_codewords, orthogonality, take_codewords
from gsqtok.quantizers.fused import Method, fusible, look_up
from gsqtok.quantizers.kmeans import KMeansStart, kmeans
from gsqtok.quantizers.rotation import rotation_trick

Gradient = Literal["straight_through", "rotation"]


def through(latent: Tensor, codewords: Tensor, gradient: Gradient) -> Tensor:
    """Codewords to the last bit, with a gradient to the latent."""
    return rotation_trick(latent, codewords) if gradient == "rotation" else straight_through(latent, codewords)


@dataclass(eq=False, repr=False, kw_only=True)
class LearntCodebook(GroupedQuantizer):
    """Base of the methods that look latents up in a codebook which is trained by a loss of its own.

    A subclass makes ``self.codebook``, (V, d) or one for each group (G, V, d), and calls ``start_by_kmeans``.

    Args:
        commitment_weight: weight of the commitment loss beside the codebook loss.
        gradient: how the decoder's gradient reaches the latent: ``"straight_through"`` or ``"rotation"``, see
            `rotation_trick`.
        orthogonal_weight: weight of a loss that turns codewords away from each other; see `orthogonality`.
    """

    commitment_weight: Weight = 0.25
    gradient: Gradient = field(default="straight_through", metadata=LATER)
    orthogonal_weight: Weight = field(default=0.0, metadata=LATER)
    if TYPE_CHECKING:
        codebook: Tensor = field(init=False)
        start: KMeansStart | None = field(init=False)

    def start_by_kmeans(self, wanted: bool) -> None:
        """Begin with the cluster centres of the first latents, once there are enough."""
        self.start = KMeansStart(self.codebook_size) if wanted else None

    def book(self) -> Tensor:
        """The codewords, (V, d) or (G, V, d) float32."""
        return self.codebook.float()

    def prepared(self, latent: Tensor) -> Tensor:
        """Latents (..., groups, d) as they are compared, and as the gradient passes."""
        return latent

    def assign(self, latent: Tensor, book: Tensor) -> Tensor:
        """Index of each latent (..., groups, d), which is not prepared yet: int64 (..., groups)."""
        return nearest_codewords(latent, book, "euclidean")

    def codewords(self, indices: Tensor, book: Tensor) -> Tensor:
        """What a decoder gets for indices (..., groups): (..., groups, d)."""
        return take_codewords(book, indices)

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """See ``Quantizer.forward``."""
        rows, book = self.split(latent), self.book()
        latent, indices = self.prepared(rows), self.assign(rows, book)
        codewords = self.codewords(indices, book)
        loss, losses = codebook_and_commitment(latent, codewords, self.commitment_weight)
        quantized = through(latent, codewords, self.gradient).flatten(-2)
        return self.with_orthogonality(QuantizerOutput(quantized, indices, loss, losses), book)

    @property
    def unit_rows(self) -> bool | None:
        """How kernels compare: rows of length 1 by angle, or rows as they are by distance; None where they do not.

        It says so of the class that defines it alone: what a subclass changes, the kernels would not know.
        """
        return None

    def quantize_fused(self, latent: Tensor) -> QuantizerOutput | None:
        """See ``Quantizer.quantize_fused``."""
        unit = self.unit_rows if "unit_rows" in vars(type(self)) else None
        if unit is None or self.gradient != "straight_through" or not fusible(latent, self.groups):
            return None
        book = self.book()
        out = look_up(latent, book, Method(self.groups, unit, 1.0, self.commitment_weight))
        losses = {"codebook": out.codebook, "commitment": out.commitment}
        return self.with_orthogonality(QuantizerOutput(out.quantized, out.indices, out.loss, losses), book)

    def with_orthogonality(self, out: QuantizerOutput, book: Tensor) -> QuantizerOutput:
        """Add the loss that turns codewords away from each other, if it is weighted."""
        if self.orthogonal_weight:
            out.losses["orthogonal"] = orthogonality(book)
            out.loss = out.loss + self.orthogonal_weight * out.losses["orthogonal"]
        return out

    def lookup(self, indices: Tensor) -> Tensor:
        """See ``Quantizer.decode``."""
        return self.codewords(indices, self.book()).flatten(-2)

    @property
    def follows(self) -> bool:
        """See ``Quantizer.follows``."""
        return self.start is not None and self.training and self.codebook.requires_grad and self.start.pending

    def move(self, latent: Tensor, indices: Tensor) -> None:
        """See ``Quantizer.update``: the start by k-means, of each codebook on the latents that are looked up in it."""
        assert self.start is not None
        rows = self.prepared(self.split(latent))[(indices >= 0).all(-1)]
        gathered = self.start.gather(rows.flatten(0, 1) if self.codebook.ndim == 2 else rows)
        if gathered is None:
            return
        if self.codebook.ndim == 2:
            centres = kmeans(gathered, self.codebook_size)
        else:
            centres = torch.stack([kmeans(of_group, self.codebook_size) for of_group in gathered.unbind(1)])
        self.codebook.copy_(self.prepared(centres))
