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
    if kind == "log":
        return ((reconstruction.float() - images.float()).square().flatten(1).mean(1) + LEAST_ERROR).log().mean()
    raise ValueError(f"kind must be 'l2', 'l1' or 'log', got {kind!r}")
