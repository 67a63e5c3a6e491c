"""Perceptual distances: images compared by the features of a frozen network.

LPIPS: Zhang, Isola, Efros, Shechtman, Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
CVPR 2018, arXiv 1801.03924, equation 1. The same distance with equal instead of learnt channel weights serves for any
backbone of timm.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

import torch
from torch import Tensor, nn

from gsqtok.networks.backbone import FrozenNetwork, load_backbone, load_trunk


class PerceptualDistance(nn.Module):
    """Weighted squared distance between unit-length feature vectors, averaged over positions.

    Every stage's features are scaled to unit length over the channels, subtracted, squared, weighted by channel, summed
    over channels and averaged over positions; stages add up (arXiv 1801.03924, equation 1).

    Args:
        backbone: where the features come from.
        channel_weights: for each of the backbone's stages a vector (C_i,) of weights. None weighs all channels of all
            stages by 1 / number of stages, which makes the distance a mean over stages.
    """

    def __init__(self, backbone: FrozenNetwork, channel_weights: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        if channel_weights is None:
            channel_weights = [torch.full((c,), 1 / len(backbone.channels)) for c in backbone.channels]
        if [tuple(w.shape) for w in channel_weights] != [(c,) for c in backbone.channels]:
            raise ValueError(f"channel_weights must be vectors of {backbone.channels} weights")
        self.backbone = backbone
        for stage, weight in enumerate(channel_weights):
            self.register_buffer(f"weight{stage}", weight.detach().float().clone(), persistent=False)

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Compute the mean of `distances` over the batch, a scalar; 0 for an empty one."""
        return self.distances(reconstruction, images).sum() / max(1, len(images))

    def distances(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Compute the distance of each pair.

        Args:
            reconstruction: (B, 3, H, W), nominally in [-1, 1]; gradients flow here alone.
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            Float32 (B,), at least 0. The backbone follows the surrounding autocast, the comparison is float32.
        """
        if reconstruction.shape != images.shape:
            raise ValueError(
                f"reconstruction {tuple(reconstruction.shape)} and images {tuple(images.shape)} differ in shape"
            )
        with torch.no_grad():
            target = [_unit_length(features) for features in self.backbone(images)]
        distance = torch.zeros(len(images), device=images.device)
        for stage, features in enumerate(self.backbone(reconstruction)):
            difference = (_unit_length(features) - target[stage]).square()
            weight = self.get_buffer(f"weight{stage}").view(1, -1, 1, 1)
            distance = distance + (difference * weight).sum(dim=1).mean(dim=(1, 2))
        return distance


def build_perceptual(name: str, weights: str | Path | None = None) -> PerceptualDistance:
    """Build a perceptual distance by name.

    Args:
        name: ``"lpips"`` (VGG16 with LPIPS's learnt heads, version 0.1), or ``"timm:NETWORK"`` for a network of timm
            with equal weights, such as ``"timm:tf_efficientnet_lite0"``.
        weights: the network's file or folder. None looks in torch's hub cache and downloads (LPIPS), or does as
            `gsqtok.networks.backbone.load_backbone` says.

    Raises:
        ValueError: unknown name, or weights that do not fit.
        FileNotFoundError: no weights; the message says what to get from where.
    """
    if name == "lpips":
        return lpips("vgg16", weights)
    kind, _, network = name.partition(":")
    if kind == "timm" and network:
        return PerceptualDistance(load_backbone(network, weights))
    raise ValueError(f"perceptual distance must be 'lpips' or 'timm:NETWORK', got {name!r}")


def lpips(network: str, weights: str | Path | None = None, *, download: bool = True) -> PerceptualDistance:
    """Build LPIPS, version 0.1, on ``"vgg16"`` or ``"alexnet"``; arguments and errors are those of `load_trunk`.

    torchmetrics ships the learnt channel weights. LPIPS's "scaling layer" is ImageNet's mean and standard deviation
    restated for [-1, 1], which is how the trunk normalises.
    """
    trunk = load_trunk(network, weights, download=download)
    heads_of = {"vgg16": "vgg.pth", "alexnet": "alex.pth"}
    file = f"torchmetrics/functional/image/lpips_models/{heads_of[network]}"
    heads = torch.load(str(distribution("torchmetrics").locate_file(file)), map_location="cpu", weights_only=True)
    return PerceptualDistance(trunk, [heads[f"lin{stage}.model.1.weight"].flatten() for stage in range(5)])


def _unit_length(features: Tensor) -> Tensor:
    features = features.float()
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + 1e-8)
