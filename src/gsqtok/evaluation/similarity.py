"""How like its original a reconstruction is, image by image: PSNR, SSIM and MS-SSIM of 8-bit images."""

from __future__ import annotations

import math

import pytorch_msssim
import torch
from torch import Tensor

PSNR_CAP = 100.0
"""dB. Identical images have an infinite PSNR; one 8-bit step in one value of a 256 px image gives 101 dB."""

PEAK = 255
_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5


def similarity(reconstruction: Tensor, images: Tensor, ms_ssim: bool = False) -> dict[str, Tensor]:
    """Measure each image as 8-bit images: what a decoder would write into a file.

    Both sides are clamped to [-1, 1] and rounded to the 256 values of a stored image first. Squared errors are summed
    as integers, everything else in float64.

    Args:
        reconstruction: (B, 3, H, W) in [-1, 1]; values outside are clamped.
        images: (B, 3, H, W) in [-1, 1], on the same device.
        ms_ssim: compute it, too.

    Returns:
        Of each image, (B,):

        - ``squared_error``: int64, summed over its values in 8-bit steps;
        - ``psnr``: 10 log10(255^2 / mean squared error) in dB, at most ``PSNR_CAP``, float64;
        - ``ssim``: structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004: Gaussian window of 11 x 11 with sigma
          1.5, k1 0.01, k2 0.03), averaged over the positions whose window lies inside the image and over the three
          channels, float64. nan for a side of fewer than 11 pixels: no window fits;
        - ``ms_ssim``: multi-scale structural similarity (Wang, Simoncelli, Bovik 2003: five scales, each half the one
          before, where an odd side gets a line of zeros first, as pytorch-msssim does; by channel, then averaged),
          float64. nan for a side of fewer than 176 pixels: no window fits the coarsest scale.

    Raises:
        ValueError: shapes that differ or are not images, or values that are not finite.
    """
    if reconstruction.shape != images.shape or images.ndim != 4:
        raise ValueError(
            f"reconstruction {tuple(reconstruction.shape)} and images {tuple(images.shape)} differ or are not 4-D"
        )
    ours, theirs = (to_8_bits(x.detach()).long() for x in (reconstruction, images))
    squared_error = (ours - theirs).square().flatten(1).sum(dim=1)
    psnr = 10 * torch.log10(PEAK**2 * images[0].numel() / squared_error.double())
    # float64 keeps the window's variances from cancelling, and convolutions in it escape autocast and TF32.
    ours, theirs = ours.double(), theirs.double()
    metrics = {"squared_error": squared_error, "psnr": psnr.clamp(max=PSNR_CAP)}
    for name, measure, smallest in (("ssim", pytorch_msssim.ssim, 11), ("ms_ssim", pytorch_msssim.ms_ssim, 176)):
        if name == "ssim" or ms_ssim:
            fits = min(images.shape[-2:]) >= smallest  # or no window lies inside the (coarsest) image
            options = {"data_range": PEAK, "size_average": False, "win": _window(ours)}
            metrics[name] = measure(ours, theirs, **options) if fits else ours.new_full((len(ours),), math.nan)
    return metrics


def to_8_bits(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1], clamped, to the uint8 values of a stored image, rounded to nearest.

    Raises:
        ValueError: values that are not finite.
    """
    images = images.float()
    if not torch.isfinite(images).all():
        raise ValueError("images hold values that are not finite")
    return ((images.clamp(-1, 1) + 1) * (PEAK / 2)).round().to(torch.uint8)


def _window(like: Tensor) -> Tensor:
    """The library's own window is float32, whose sum is off by enough to be seen in flat images."""
    offsets = torch.arange(_SSIM_WINDOW, dtype=like.dtype, device=like.device) - _SSIM_WINDOW // 2
    window = (-offsets.square() / (2 * _SSIM_SIGMA**2)).exp()
    return (window / window.sum()).expand(like.shape[1], 1, 1, -1)
