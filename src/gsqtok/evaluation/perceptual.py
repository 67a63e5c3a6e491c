"""Perceptual distances of pairs of images: LPIPS and DISTS.

LPIPS: Zhang et al. 2018, arXiv 1801.03924, version 0.1, on VGG16 or AlexNet; the network is the loss's. DISTS: Ding et
al. 2020, arXiv 2004.07728, on VGG16; the network is torchmetrics'. Both trunks are torchvision's, from torch's hub
cache. Distances are float32, whatever the model ran in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gsqtok.evaluation.features import full_precision
from gsqtok.evaluation.similarity import to_8_bits
from gsqtok.io import one_line, sha256_of
from gsqtok.losses.perceptual import PerceptualDistance, build_perceptual, lpips
from gsqtok.networks.backbone import trunk_file

TRUNKS = {"lpips_vgg": "vgg16", "lpips_alex": "alexnet", "lpips_vtbench": "alexnet", "dists": "vgg16"}
_SMALLEST = {"vgg16": 16, "alexnet": 31}  # pixels of a side from which every stage has a position


class ImageDistance:
    """A perceptual distance of pairs of images, rounded to 8 bits first: (B, 3, H, W) twice -> float64 (B,).

    It is nan for images that are smaller than the network's stages allow (16 pixels a side for VGG16, 31 for AlexNet).

    Args:
        name: ``"lpips_vgg"``, ``"lpips_alex"``, ``"dists"``, or ``"lpips_vtbench"``: on AlexNet, of images in [0, 1]
            where LPIPS expects [-1, 1], which VTBench's results are of; or ``"timm:NETWORK"``, LPIPS's formula with
            equal weights in a network of timm, whose metric is called ``feature_distance_NETWORK``.
        download: fetch the trunk into torch's hub cache where it is absent.

    Attributes:
        metric: what its values are called: ``name``, with the weights' digest unless they are the usual ones.

    Raises:
        ValueError: unknown name, or a file in the cache that does not fit.
        FileNotFoundError: no weights; the message says what to get and where to put it.
    """

    network: nn.Module

    def __init__(self, name: str, *, download: bool = False) -> None:
        if name.startswith("timm:"):
            self.name, self.smallest = name, 0
            self.metric, self.network = f"feature_distance_{name.removeprefix('timm:')}", build_perceptual(name)
            return
        if name not in TRUNKS:
            raise ValueError(f"no perceptual distance {name!r}; there are {', '.join(TRUNKS)}, timm:NETWORK")
        file = trunk_file(TRUNKS[name], download=download)
        self.name, self.smallest = name, _SMALLEST[TRUNKS[name]]
        digest = sha256_of(file)
        # only the usual trunk gives values that others can compare with
        self.metric = name if digest.startswith(file.stem[-8:]) else f"{name}_{digest[:8]}"
        self.network = _dists() if name == "dists" else lpips(TRUNKS[name])

    def to(self, device: torch.device) -> ImageDistance:
        """Move the weights."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Measure a batch of (B, 3, H, W) in [-1, 1], where the weights are.

        Raises:
            ValueError: shapes that differ, or values that are not finite.
        """
        if reconstruction.shape != images.shape or images.ndim != 4:
            raise ValueError(
                f"reconstruction {tuple(reconstruction.shape)} and images {tuple(images.shape)} differ or are not 4-D"
            )
        ours, theirs = (to_8_bits(x).float() / 255 for x in (reconstruction, images))
        if min(images.shape[-2:]) < self.smallest:
            return torch.full((len(images),), math.nan, dtype=torch.float64)
        with full_precision(images.device):
            if isinstance(self.network, PerceptualDistance):
                if self.name != "lpips_vtbench":
                    ours, theirs = 2 * ours - 1, 2 * theirs - 1
                distances = self.network.distances(ours, theirs)
            else:
                distances = self.network(ours, theirs)
        return distances.reshape(len(images)).double()


def _dists() -> nn.Module:
    """torchmetrics' network; torchvision finds its trunk in torch's hub cache."""
    from torchmetrics.functional.image.dists import DISTSNetwork

    try:
        return DISTSNetwork().eval().requires_grad_(False)
    except Exception as error:  # torch raises many kinds for a file that it will not read
        problem = one_line(error)[:200]
        raise ValueError(
            f"{trunk_file('vgg16', download=False)} does not hold torchvision's VGG16: {problem}"
        ) from error
