"""Perceptual distances of pairs of images, averaged over a set: LPIPS and DISTS.

LPIPS: Zhang et al. 2018, arXiv 1801.03924, version 0.1, on VGG16 or AlexNet; the network is the loss's. DISTS: Ding et
al. 2020, arXiv 2004.07728, on VGG16; the network is torchmetrics'. Both trunks are torchvision's, from torch's hub
cache. Distances are float32, whatever the model ran in.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from gsqtok.evaluation.features import full_precision
from gsqtok.evaluation.similarity import to_8_bits
from gsqtok.io import sha256_of
from gsqtok.losses.perceptual import PerceptualDistance, lpips
from gsqtok.networks.backbone import trunk_file

TRUNKS = {"lpips_vgg": "vgg16", "lpips_alex": "alexnet", "dists": "vgg16"}
_SMALLEST = {"vgg16": 16, "alexnet": 31}  # pixels of a side from which every stage has a position


class ImageDistance(Metric):
    """The mean of a perceptual distance over pairs of images, rounded to 8 bits first.

    `compute` gives a float: nan as soon as one image is smaller than the network's stages allow (16 pixels a side
    for VGG16, 31 for AlexNet).

    Args:
        name: ``"lpips_vgg"``, ``"lpips_alex"`` or ``"dists"``.
        download: fetch the trunk into torch's hub cache where it is absent.

    Attributes:
        last: of the latest `update`, each image's distance, float64 (B,).
        metric: the name of the metric: ``name``, with the weights' digest unless they are the usual ones.

    Raises:
        ValueError: unknown name, or a file in the cache that does not fit.
        FileNotFoundError: no weights; the message says what to get and where to put it.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self, name: str, *, download: bool = False) -> None:
        super().__init__()
        if name not in TRUNKS:
            raise ValueError(f"no perceptual distance {name!r}; there are {', '.join(TRUNKS)}")
        file = trunk_file(TRUNKS[name], download=download)
        self.name, self.trunk = name, TRUNKS[name]
        self.weights_sha256 = sha256_of(file)
        # only the usual trunk gives values that others can compare with
        usual = self.weights_sha256.startswith(file.stem[-8:])
        self.metric = name if usual else f"{name}_{self.weights_sha256[:8]}"
        self.network = _dists() if name == "dists" else lpips(self.trunk)
        self.last = torch.zeros(0, dtype=torch.float64)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, reconstruction: Tensor, images: Tensor) -> None:
        """Add a batch of (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: shapes that differ, or values that are not finite.
        """
        if reconstruction.shape != images.shape or images.ndim != 4:
            raise ValueError(
                f"reconstruction {tuple(reconstruction.shape)} and images {tuple(images.shape)} differ or are not 4-D"
            )
        ours, theirs = (to_8_bits(x.to(self.device)).float() / 255 for x in (reconstruction, images))
        if min(images.shape[-2:]) < _SMALLEST[self.trunk]:
            distances = torch.full((len(images),), math.nan)
        elif isinstance(self.network, PerceptualDistance):
            with full_precision(self.device):
                distances = self.network.distances(2 * ours - 1, 2 * theirs - 1)
        else:
            with full_precision(self.device):
                distances = self.network(ours, theirs)
        self.last = distances.reshape(len(images)).to(self.device, torch.float64)
        self.total += self.last.sum()
        self.images += len(images)

    def compute(self) -> float:
        """Return the mean. Raises ValueError where no image was seen."""
        if not int(self.images):
            raise ValueError("no images to report on: call update(reconstruction, images) first")
        return self.total.item() / int(self.images)

    def record(self) -> dict[str, Any]:
        """Return what goes on record."""
        return {"network": self.trunk, "weights_sha256": self.weights_sha256}


def _dists() -> nn.Module:
    """torchmetrics' network; torchvision finds its trunk in torch's hub cache."""
    from torchmetrics.functional.image.dists import DISTSNetwork

    try:
        return DISTSNetwork().eval().requires_grad_(False)
    except Exception as error:  # torch raises many kinds for a file that it will not read
        problem = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{trunk_file('vgg16', download=False)} does not hold torchvision's VGG16: {problem}"
        ) from error
