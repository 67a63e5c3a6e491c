"""PatchGAN: one verdict for every overlapping patch.

Isola, Zhu, Zhou, Efros, "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017,
arXiv 1611.07004, section 3.2.2 and appendix 6.1.2. Unconditional, as in VQGAN: it sees the image alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from gsqtok.discriminators.augment import DiffAugment
from gsqtok.discriminators.base import Discriminator

_KERNEL = 4
_NORM_GROUPS = 32
_MOST_WIDENING = 8  # the last layers have at most 8 times the channels of the first


class PatchDiscriminator(Discriminator):
    """Strided 4x4 convolutions with LeakyReLU 0.2; every logit sees a square patch (70 x 70 pixels at 3 layers).

    The original normalises over the batch. So does this, always with the statistics of the batch at hand: real images
    and reconstructions, given in calls of their own, are normalised apart, as in pix2pix and VQGAN. Running averages,
    which training never reads, are not kept: a call in the generator's step leaves no trace, train and eval mode are
    the same, and ranks hold no state to agree on. Each rank uses its own share of the batch, as the original does;
    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` joins them.

    Args:
        channels: filters of the first convolution; they double with every layer, up to 8 times as many.
        layers: strided convolutions.
        norm: ``"batch"``, the original, or ``"group"``: then the verdict on an image does not depend on the others
            in its batch, as the gradient penalty and batches of one or two images want it.
        augment: see ``DiffAugment``.

    Shapes: images (B, 3, H, W) -> [(B, 1, H / 2^layers - 2, W / 2^layers - 2)] for sides that are multiples.

    Raises:
        ValueError: fewer than one layer, an unknown norm, channels that "group" cannot divide; an image that leaves
            no logit.
    """

    def __init__(
        self,
        channels: int = 64,
        layers: int = 3,
        norm: Literal["batch", "group"] = "batch",
        augment: Sequence[str] | DiffAugment = (),
    ) -> None:
        super().__init__(augment)
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        if norm not in ("batch", "group"):
            raise ValueError(f"norm must be 'batch' or 'group', got {norm!r}")
        if norm == "group" and channels * 2 % _NORM_GROUPS:
            raise ValueError(f"norm 'group' needs channels that are a multiple of {_NORM_GROUPS // 2}, got {channels}")
        widths = [channels * min(2**i, _MOST_WIDENING) for i in range(layers + 1)]
        modules: list[nn.Module] = [nn.Conv2d(3, channels, _KERNEL, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
        for i, (before, after) in enumerate(pairwise(widths)):
            stride = 2 if i < layers - 1 else 1
            normalise = (
                nn.BatchNorm2d(after, track_running_stats=False)
                if norm == "batch"
                else nn.GroupNorm(_NORM_GROUPS, after)
            )
            # the normalisation takes the mean away, and a bias with it
            modules += [
                nn.Conv2d(before, after, _KERNEL, stride, padding=1, bias=norm == "group"),
                normalise,
                nn.LeakyReLU(0.2, True),
            ]
        modules.append(nn.Conv2d(widths[-1], 1, _KERNEL, padding=1))
        self.layers = nn.Sequential(*modules)
        self.smallest = 3 * 2**layers  # pixels of a side: two unstrided 4x4 convolutions each take one position
        self.apply(_initialise)

    def logits(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one map (B, 1, h, w)."""
        height, width = images.shape[-2:]
        if min(height, width) < self.smallest:
            raise ValueError(
                f"this PatchGAN needs images of {self.smallest} pixels a side or more, got {height} x {width}; "
                "fewer layers see smaller ones"
            )
        return [self.layers(images)]


def _initialise(module: nn.Module) -> None:
    """Weights ~ N(0, 0.02), scales of normalisations ~ N(1, 0.02), biases 0 (appendix 6.2; the scales: its code)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if isinstance(bias := getattr(module, "bias", None), Tensor):
        nn.init.zeros_(bias)
