"""How like its original a reconstruction is, image by image: PSNR, SSIM and MS-SSIM of 8-bit images."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

PSNR_CAP = 100.0
"""dB. Identical images have an infinite PSNR; one 8-bit step in one value of a 256 px image gives 101 dB."""

PEAK = 255
_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_MS_SSIM_POWERS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003, from fine to coarse


def similarity(reconstruction: Tensor, images: Tensor, ms_ssim: bool = False) -> dict[str, Tensor]:
    """The metrics of each image.

    Args:
        reconstruction: (B, 3, H, W) in [-1, 1]; values outside are clamped.
        images: (B, 3, H, W) in [-1, 1], on the same device.
        ms_ssim: compute it, too.

    Returns:
        ``psnr`` (in dB, capped at ``PSNR_CAP``), ``ssim`` and ``ms_ssim``, float64 (B,), as
        `gsqtok.evaluation.metrics.ReconstructionMetrics` defines them; ``squared_error`` int64 (B,), summed over a
        image's values in 8-bit steps.

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
    metrics = {"squared_error": squared_error, "psnr": psnr.clamp(max=PSNR_CAP), "ssim": _ssim(ours, theirs)}
    return metrics | ({"ms_ssim": _ms_ssim(ours, theirs)} if ms_ssim else {})


def to_8_bits(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1], clamped, to the uint8 values of a stored image, rounded to nearest.

    Raises:
        ValueError: values that are not finite.
    """
    images = images.float()
    if not torch.isfinite(images).all():
        raise ValueError("images hold values that are not finite")
    return ((images.clamp(-1, 1) + 1) * (PEAK / 2)).round().to(torch.uint8)


def _ssim(ours: Tensor, theirs: Tensor) -> Tensor:
    """Structural similarity of each image, (B, C, H, W) in 8-bit steps -> (B,); nan where no window fits."""
    if min(ours.shape[-2:]) < _SSIM_WINDOW:
        return ours.new_full((len(ours),), math.nan)
    luminance, contrast = _similarities(ours, theirs)
    return (luminance * contrast).flatten(1).mean(dim=1)


def _ms_ssim(ours: Tensor, theirs: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image, (B, C, H, W) in 8-bit steps -> (B,); nan where too small."""
    scales = len(_MS_SSIM_POWERS)
    if min(ours.shape[-2:]) < _SSIM_WINDOW * 2 ** (scales - 1):
        return ours.new_full((len(ours),), math.nan)
    batch = len(ours)
    ours, theirs = (x.flatten(0, 1).unsqueeze(1) for x in (ours, theirs))  # channels as images of their own
    result = torch.ones(len(ours), dtype=ours.dtype, device=ours.device)
    for power in _MS_SSIM_POWERS[:-1]:
        _, contrast = _similarities(ours, theirs)
        result *= contrast.flatten(1).mean(dim=1).relu() ** power
        ours, theirs = (F.avg_pool2d(x, 2) for x in (ours, theirs))
    result *= _ssim(ours, theirs).relu() ** _MS_SSIM_POWERS[-1]
    return result.view(batch, -1).mean(dim=1)


def _similarities(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure term of SSIM wherever the window lies inside: (B, C, H - 10, W - 10) each.

    torchmetrics' function convolves with the whole window in two dimensions, which in float64 on a CPU took eight times
    as long and gigabytes: here the window's two factors go one after the other.
    """
    offsets = torch.arange(_SSIM_WINDOW, dtype=ours.dtype, device=ours.device) - _SSIM_WINDOW // 2
    window = (-(offsets**2) / (2 * _SSIM_SIGMA**2)).exp()
    window = window / window.sum()

    def local_mean(x: Tensor) -> Tensor:
        for dim in (-1, -2):
            length = x.shape[dim] - _SSIM_WINDOW + 1
            x = sum(weight * x.narrow(dim, start, length) for start, weight in enumerate(window.tolist()))
        return x

    mean_x, mean_y = local_mean(ours), local_mean(theirs)
    variances = local_mean(ours.square() + theirs.square()) - mean_x.square() - mean_y.square()
    covariance = local_mean(ours * theirs) - mean_x * mean_y
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return luminance, (2 * covariance + c2) / (variances + c2)
