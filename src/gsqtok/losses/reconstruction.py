"""Distance between a reconstruction and its image, value by value."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

LEAST_ERROR = 5e-4  # 39 dB: what is better than that hardly counts for the logarithm


def reconstruction_loss(reconstruction: Tensor, images: Tensor, kind: Literal["l2", "l1", "log"] = "l2") -> Tensor:
    """Measure how far reconstructions are from their images.

    Args:
        reconstruction: (B, 3, H, W), nominally in [-1, 1]; gradients flow here.
        images: (B, 3, H, W) in [-1, 1].
        kind: ``"l2"``: the mean squared difference over all values (the paper's); ``"l1"``: the mean absolute one;
            ``"log"``: the mean over images of log(squared difference + ``LEAST_ERROR``), which is PSNR up to a factor,
            so that an image with little error counts as much as one with a lot.

    Returns:
        A float32 scalar, whatever the inputs' type and the surrounding autocast; 0 for an empty batch.

    Raises:
        ValueError: shapes that differ (nothing is broadcast), or an unknown kind.
    """
    if reconstruction.shape != images.shape:
        raise ValueError(
            f"reconstruction {tuple(reconstruction.shape)} and images {tuple(images.shape)} differ in shape"
        )
    if kind == "l2":
        total = F.mse_loss(reconstruction.float(), images.float(), reduction="sum")
    elif kind == "l1":
        total = F.l1_loss(reconstruction.float(), images.float(), reduction="sum")
    elif kind == "log":
        errors = (reconstruction.float() - images.float()).square().flatten(1).mean(1)
        return (errors + LEAST_ERROR).log().sum() / max(1, len(images))
    else:
        raise ValueError(f"kind must be 'l2', 'l1' or 'log', got {kind!r}")
    return total / max(1, images.numel())
