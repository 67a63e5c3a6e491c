"""Distance between a reconstruction and its image, value by value."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F


def reconstruction_loss(reconstruction: Tensor, images: Tensor, kind: Literal["l2", "l1"] = "l2") -> Tensor:
    """Mean squared (``"l2"``, the paper's) or mean absolute (``"l1"``) difference over all values.

    Args:
        reconstruction: (B, 3, H, W), nominally in [-1, 1]; gradients flow here.
        images: (B, 3, H, W) in [-1, 1].
        kind: which difference.

    Returns:
        A float32 scalar, whatever the inputs' type and the surrounding autocast.

    Raises:
        ValueError: shapes that differ (nothing is broadcast), or an unknown kind.
    """
    if reconstruction.shape != images.shape:
        raise ValueError(
            f"reconstruction {tuple(reconstruction.shape)} and images {tuple(images.shape)} differ in shape"
        )
    if kind == "l2":
        return F.mse_loss(reconstruction.float(), images.float())
    if kind == "l1":
        return F.l1_loss(reconstruction.float(), images.float())
    raise ValueError(f"kind must be 'l2' or 'l1', got {kind!r}")
