"""The images of a run: for training, for measuring, and the few that its grids show."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from gsqtok.data import CropMix, DecodedImages, ImageSource, ImageTransform, eval_loader, open_source, to_pil
from gsqtok.training.config import DataConfig

GRID_IMAGES = 8


def training_images(config: DataConfig) -> tuple[ImageSource, ImageTransform | CropMix]:
    """The training source, opened, and the crops of its images; for ``train_loader``."""
    if not config.train:
        raise ValueError("no training images: name a folder, parquet files or tar shards with --data.train")
    source = open_source(config.train, split=config.train_split, streaming=config.streaming)
    if not config.crops:
        return source, ImageTransform(config.size, crop=config.crop, flip=config.flip, max_resize=config.max_resize)
    transforms = [ImageTransform(c.size, crop="random", flip=config.flip, scales=c.scales) for c in config.crops]
    return source, CropMix(tuple(transforms), tuple(crop.share for crop in config.crops), config.size)


def decoded_images(config: DataConfig, source: ImageSource, workers: int) -> DecodedImages:
    """The training images in ``config.cache``, at the scales of their crops; decoded if they are not there."""
    assert config.cache is not None
    scales = {scale for crop in config.crops for scale in crop.scales}
    return DecodedImages(source, config.cache, scales=sorted(scales), workers=workers)


def validation_images(config: DataConfig) -> ImageSource | None:
    """The validation source, opened; None where there is none."""
    return open_source(config.validation, split=config.validation_split) if config.validation else None


def fixed_images(config: DataConfig, source: ImageSource) -> Tensor:
    """The first readable images of a source, which every sample grid shows: (at most 8, 3, size, size)."""
    images: list[Tensor] = []
    for batch in eval_loader(source, ImageTransform(config.size), batch_size=GRID_IMAGES):
        images.extend(batch["image"])
        if len(images) >= GRID_IMAGES:
            break
    if not images:
        raise ValueError("none of the images can be read")
    return torch.stack(images[:GRID_IMAGES])


def grid_of(images: Tensor, reconstructions: Tensor) -> Image.Image:
    """Images (N, 3, H, W), on the CPU, above their reconstructions."""
    from torchvision.utils import make_grid

    return to_pil(make_grid([*images, *reconstructions], nrow=len(images), padding=2, pad_value=1.0))
