"""How close reconstructions come to their images, over a set.

A metric of torchmetrics: feed it batch by batch, on as many processes as you like, and `compute` gives the same metrics
as one process that saw everything. It keeps its states where ``.to(device)`` puts them and brings what it is fed there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from gsqtok.evaluation.similarity import PEAK, PSNR_CAP, similarity


class ReconstructionMetrics(Metric):
    """PSNR, SSIM, MS-SSIM and mean squared error of reconstructions, as 8-bit images.

    Both sides are clamped to [-1, 1] and rounded to the 256 values of a stored image first, so the metrics are those
    of the files that a decoder would write. Squared errors are summed as integers, everything else in float64.

    `compute` gives a dict of

    - ``psnr``: mean over images of 10 log10(255^2 / mse) in dB, each image's capped at ``PSNR_CAP``;
    - ``psnr_pooled``: the same from the squared error of all values together (never above ``psnr``, capped likewise);
    - ``ssim``: mean over images of the structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004: Gaussian window
      of 11 x 11 with sigma 1.5, k1 0.01, k2 0.03), over the positions whose window lies inside the image and over
      the three channels. nan as soon as one image has a side of fewer than 11 pixels: no window fits;
    - ``ms_ssim``, if asked for: mean over images of the multi-scale structural similarity (Wang, Simoncelli, Bovik
      2003: five scales, each half the one before; by channel, then averaged). nan as soon as one image has a side
      of fewer than 176 pixels: no window fits the coarsest scale;
    - ``mse``: mean squared error in units of 8-bit steps, in [0, 65025];
    - ``images``: how many images.

    Args:
        ms_ssim: compute it, too.

    Attributes:
        last: of the latest `update`, each image's psnr, ssim (and ms_ssim), float64 (B,).
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(self, ms_ssim: bool = False) -> None:
        super().__init__()
        self._means = ("psnr", "ssim", "ms_ssim") if ms_ssim else ("psnr", "ssim")
        self.last: dict[str, Tensor] = {}
        for name in self._means:
            self.add_state(f"{name}_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("squared_error", "values", "images"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, reconstruction: Tensor, images: Tensor) -> None:
        """Add a batch.

        Args:
            reconstruction: (B, 3, H, W) in [-1, 1]; values outside are clamped.
            images: (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: shapes that differ or are not images, or values that are not finite.
        """
        if reconstruction.shape == images.shape and images.ndim == 4 and len(images) == 0:
            self.last = {name: torch.zeros(0, dtype=torch.float64) for name in self._means}
            return
        ours, theirs = (x.detach().to(self.device) for x in (reconstruction, images))
        self.last = similarity(ours, theirs, "ms_ssim" in self._means)
        squared_error = self.last.pop("squared_error")
        for name, values_of_images in self.last.items():
            setattr(self, f"{name}_sum", getattr(self, f"{name}_sum") + values_of_images.sum())
        self.squared_error += squared_error.sum()
        self.values += images.numel()
        self.images += len(images)

    def compute(self) -> dict[str, float | int]:
        """The metrics listed above. Raises ValueError where no image was seen."""
        images = int(self.images)
        if images == 0:
            raise ValueError("no images to report on: call update(reconstruction, images) first")
        mse = int(self.squared_error) / int(self.values)
        pooled = 10 * math.log10(PEAK**2 / mse) if mse > 0 else math.inf
        means = {name: getattr(self, f"{name}_sum").item() / images for name in self._means}
        return {**means, "psnr_pooled": min(pooled, PSNR_CAP), "mse": mse, "images": images}
