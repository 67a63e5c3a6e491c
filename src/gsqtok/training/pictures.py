"""The pictures of a run: for training, for measuring, and the few that its grids show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gsqtok.data import ImageDataset, ImageTransform, eval_loader, open_source
from gsqtok.training.config import DataConfig

GRID_PICTURES = 8


def training_set(config: DataConfig, seed: int) -> Any:
    """The training pictures, opened; for ``train_loader``."""
    if not config.train:
        raise ValueError("no training pictures: name a folder, parquet files or tar shards with --data.train")
    source = open_source(config.train, split=config.train_split, streaming=config.streaming)
    transform = ImageTransform(config.size, crop="random", flip=config.flip, max_resize=config.max_resize)
    return ImageDataset(source, transform, seed=seed)


def validation_set(config: DataConfig) -> Any | None:
    """The validation source, opened; None where there is none."""
    return open_source(config.validation, split=config.validation_split) if config.validation else None


def fixed_pictures(config: DataConfig, validation: Any | None) -> Tensor:
    """The pictures that every sample grid shows: the first of the validation source, else of the training source."""
    source = validation
    if source is None:
        source = open_source(config.train, split=config.train_split, streaming=config.streaming)
    loader = eval_loader(source, ImageTransform(config.size), batch_size=1, workers=0)
    pictures: list[Tensor] = []
    for batch in loader:
        pictures.extend(batch["image"])
        if len(pictures) >= GRID_PICTURES:
            break
    if not pictures:
        raise ValueError("none of the pictures can be read")
    return torch.stack(pictures[:GRID_PICTURES])
