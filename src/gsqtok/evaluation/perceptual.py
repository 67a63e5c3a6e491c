"""Perceptual distances of pairs of images: LPIPS and DISTS, on torchmetrics' implementations.

LPIPS: Zhang et al. 2018, arXiv 1801.03924, version 0.1, on VGG16 or AlexNet. DISTS: Ding et al. 2020,
arXiv 2004.07728, on VGG16. torchmetrics ships what both learnt; the trunks are torchvision's, from torch's hub cache or
from a file. Distances are float32, whatever the model ran in.
"""

from __future__ import annotations

import math
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image import dists as torchmetrics_dists
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from gsqtok.evaluation.features import full_precision, hub_file
from gsqtok.evaluation.similarity import to_8_bits
from gsqtok.io import sha256_of

_VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"
_ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
TRUNKS = {"lpips_vgg": _VGG16, "lpips_alex": _ALEXNET, "dists": _VGG16}
_SMALLEST = {"lpips_vgg": 16, "lpips_alex": 31, "dists": 16}  # pixels of a side from which every stage has a position
_building = Lock()


class ImageDistance(Metric):
    """The mean of a perceptual distance over pairs of images, rounded to 8 bits first.

    `compute` gives a float: nan as soon as one image is smaller than the network's stages allow (16 pixels a side
    for VGG16, 31 for AlexNet).

    Args:
        name: ``"lpips_vgg"``, ``"lpips_alex"`` or ``"dists"``.
        weights: torchvision's state dict of the trunk (VGG16 or AlexNet); None takes the one in torch's hub cache.
        download: fetch the trunk into the cache where it is absent.

    Attributes:
        last: of the latest `update`, each image's distance, float64 (B,).

    Raises:
        ValueError: unknown name, or weights that do not fit.
        FileNotFoundError: no weights; the message says what to get and where to put it.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, name: str, weights: str | Path | None = None, *, download: bool = False) -> None:
        super().__init__()
        if name not in TRUNKS:
            raise ValueError(f"no perceptual distance {name!r}; there are {', '.join(TRUNKS)}")
        file = hub_file(TRUNKS[name], name, download=download) if weights is None else Path(weights)
        if not file.is_file():
            raise FileNotFoundError(f"{name}: no weights at {file}; get {TRUNKS[name]}")
        self.name = name
        self.weights_sha256 = sha256_of(file)
        # only the usual trunk gives figures that others can compare with
        usual = self.weights_sha256.startswith(Path(TRUNKS[name]).stem[-8:])
        self.figure = name if usual else f"{name}_{self.weights_sha256[:8]}"
        self.network = _network(name, file).eval().requires_grad_(False)
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
        pair = [to_8_bits(x.to(self.device)).float() / 255 for x in (reconstruction, images)]
        if min(images.shape[-2:]) < _SMALLEST[self.name]:
            self.last = torch.full((len(images),), math.nan, dtype=torch.float64, device=self.device)
        else:
            with full_precision(self.device):
                values = self.network(*pair) if self.name == "dists" else self.network(*pair, normalize=True)
            self.last = values.reshape(len(images)).double()
        self.total += self.last.sum()
        self.images += len(images)

    def compute(self) -> float:
        """The mean. Raises ValueError where no image was seen."""
        if not int(self.images):
            raise ValueError("no images to report on: call update(reconstruction, images) first")
        return self.total.item() / int(self.images)

    def record(self) -> dict[str, Any]:
        """What goes on record."""
        trunk = "alexnet" if self.name == "lpips_alex" else "vgg16"
        return {"network": trunk, "weights_sha256": self.weights_sha256}


def _network(name: str, file: Path) -> nn.Module:
    with torch.device("meta"):  # nothing is drawn at random for the large layers that are not used
        trunk = torchvision.models.alexnet() if name == "lpips_alex" else torchvision.models.vgg16()
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        weights = {k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features.")}
        trunk.features.load_state_dict(weights, assign=True)
    except Exception as error:  # torch raises many kinds for a file that it will not read
        problem = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} does not hold torchvision's trunk of {name}: {problem}") from error
    # Both constructors fetch the trunk themselves, from nowhere but the net. They are given this one instead.
    with _building:
        if name == "dists":
            original, torchmetrics_dists.vgg16 = torchmetrics_dists.vgg16, lambda **_: trunk
            try:
                return torchmetrics_dists.DISTSNetwork()
            finally:
                torchmetrics_dists.vgg16 = original
        original = torchmetrics_lpips._get_tv_model_features
        torchmetrics_lpips._get_tv_model_features = lambda *_: trunk.features
        try:
            return torchmetrics_lpips._LPIPS(net=name.removeprefix("lpips_"))
        finally:
            torchmetrics_lpips._get_tv_model_features = original
