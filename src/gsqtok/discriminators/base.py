"""What every discriminator takes and gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gsqtok.discriminators.augment import DiffAugment


class Discriminator(nn.Module):
    """Images -> maps of logits; the higher a logit, the more its part of the image looks real.

    A subclass implements ``logits``. Nothing that it holds changes with how often it is called in the generator's step,
    but for the power iterations of spectral norms: no running statistics.
    """

    def __init__(self, augment: Sequence[str] | DiffAugment = ()) -> None:
        super().__init__()
        self.augment = augment if isinstance(augment, DiffAugment) else DiffAugment(augment)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Judge images, after the random changes of ``augment``.

        Args:
            images: (B, 3, H, W) in [-1, 1]; gradients flow to them.

        Returns:
            One or more maps of logits (B, ...), in float32 (float64 for float64 images) whatever autocast says.

        Raises:
            ValueError: images of another shape, or too small for the network.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        return [logits.to(images.dtype) for logits in self.logits(self.augment(images))]

    def logits(self, images: Tensor) -> list[Tensor]:
        """The same, of images that are checked and changed already."""
        raise NotImplementedError
