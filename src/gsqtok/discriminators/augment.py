"""Random, differentiable changes of images, so that a discriminator cannot learn a small training set by heart.

Zhao, Liu, Lin, Zhu, Han, "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020,
arXiv 2006.10738, section 3.3: real images and generated ones go through the same policy, with draws of their own, in
the discriminator's step and in the generator's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gsqtok.distributed import rank_and_size

_SHIFT = 1 / 8  # translation, at most, as a part of a side
_CUT = 1 / 2  # side of the square that is cut out, as a part of the image's
_OFFICIAL_CUT = 1 / 5


class DiffAugment(nn.Module):
    """Apply the chosen policies, in the order given, with a draw for every image.

    - ``"color"``: brightness (added: uniform in +-0.5), saturation (distance from the grey value times 0 to 2) and
      contrast (distance from the image's mean times 0.5 to 1.5).
    - ``"translation"``: a shift by whole pixels, up to an eighth of each side; zeros move in.
    - ``"cutout"``: zeros in a rectangle of half of each side, centred anywhere in the image.

    Zero is mid-grey. Values may leave [-1, 1]. Every change is affine in the image and can be differentiated any
    number of times; it is done in the image's own precision. The draws come from the global generator of the
    images' device: what restores that one repeats them.

    Under torch.distributed every rank must call this with equally many images, its part of a batch in the order of
    the ranks, and its generator in the same state: a batch then gets the same draws however many ranks share it.

    Args:
        policies: any of ``POLICIES``.
        official: as the paper's code: on images in [0, 1], so that brightness is added in +-1 of the range [-1, 1] and
            black moves in, and with cut-outs of a fifth of each side.

    Raises:
        ValueError: an unknown policy (the message lists the known ones).
    """

    POLICIES = ("color", "translation", "cutout")  # the keys of _CHANGES

    def __init__(self, policies: Sequence[str] = (), official: bool = False) -> None:
        super().__init__()
        policies = (policies,) if isinstance(policies, str) else tuple(policies)
        for policy in policies:
            if policy not in self.POLICIES:
                raise ValueError(f"unknown augmentation {policy!r}; known: {', '.join(self.POLICIES)}")
        self.policies = policies
        self.official = official

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the same shape; the images themselves where no policy is chosen."""
        if not self.policies:
            return images
        with torch.autocast(images.device.type, enabled=False):
            if self.official:
                images = (images + 1) / 2
            for policy in self.policies:
                images = _CHANGES[policy](images, self.official)
            return images * 2 - 1 if self.official else images

    def extra_repr(self) -> str:
        """What printing shows."""
        return ", ".join([*self.policies, *["official"] * self.official])


def _uniform(images: Tensor) -> Tensor:
    """One number in [0, 1) for every image, (B, 1, 1, 1)."""
    return _own(images, lambda count: torch.rand(count, 1, 1, 1, device=images.device, dtype=images.dtype))


def _below(images: Tensor, end: int) -> Tensor:
    """One whole number in [0, end) for every image, (B, 1)."""
    return _own(images, lambda count: torch.randint(end, (count, 1), device=images.device))


def _own(images: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
    """Of a draw for the images of all ranks, those of this one: every rank makes the draw of the whole batch."""
    rank, ranks = rank_and_size()
    return draw(len(images) * ranks).narrow(0, rank * len(images), len(images))


def _color(images: Tensor, official: bool) -> Tensor:
    images = images + (_uniform(images) - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * _uniform(images))
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (0.5 + _uniform(images))


def _translation(images: Tensor, official: bool) -> Tensor:
    for dim in (2, 3):
        size = images.shape[dim]
        most = int(size * _SHIFT + 0.5)
        source = torch.arange(size, device=images.device) + (_below(images, 2 * most + 1) - most)  # (B, size)
        shape = [len(images), 1, 1, 1]
        shape[dim] = size
        inside = ((source >= 0) & (source < size)).view(shape)
        index = source.clamp(0, size - 1).view(shape).expand(images.shape)
        images = torch.where(inside, images.gather(dim, index), 0)
    return images


def _cutout(images: Tensor, official: bool) -> Tensor:
    rows, columns = (_cut_along(dim, images, _OFFICIAL_CUT if official else _CUT) for dim in (2, 3))
    return torch.where(rows & columns, 0, images)


def _cut_along(dim: int, images: Tensor, part: float) -> Tensor:
    """Which rows (dim 2) or columns (dim 3) are cut out: bool (B, 1, H, 1) or (B, 1, 1, W)."""
    size = images.shape[dim]
    side = int(size * part + 0.5)
    start = _below(images, size + (1 - side % 2)) - side // 2
    position = torch.arange(size, device=images.device)
    shape = [len(images), 1, 1, 1]
    shape[dim] = size
    return ((position >= start) & (position < start + side)).view(shape)


_CHANGES = {"color": _color, "translation": _translation, "cutout": _cutout}
