"""A decoder trained alone: behind a quantizer that came after the training, or for longer than the rest.

What remains between a quantized and a continuous latent is the rate's doing, or that of training through a quantizer
with a gradient that is not its own. Latents that were learnt without one, quantized afterwards, have the first alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gsqtok.studies.study import Run
from gsqtok.training.config import DataConfig, TrainConfig

if TYPE_CHECKING:
    from gsqtok.tokenizer import ImageTokenizer

IMAGES = 4096  # whose latents become the codebooks


def decoder_training(run: Run, folder: Path, train: Callable[[TrainConfig], None]) -> TrainConfig:
    """The training that is a run's own: ``run.config``, or that of the decoder alone, behind what ``first`` learnt.

    Args:
        run: the run.
        folder: of the run, where what comes first is kept, if no run beside it has it.
        train: trains a configuration into its output folder, from where an earlier attempt stopped.
    """
    if run.first is None:
        return run.config
    start = folder / "first"
    if not (start / "config.json").exists():
        beside = folder.parent.glob(f"*-{Run({}, run.first).digest}/training")
        source = next((path for path in sorted(beside) if (path / "tokenizer" / "config.json").exists()), None)
        if source is None:
            source = folder / "training-first"
            train(replace(run.first, output=str(source)))
        quantized(source, run.config).save_pretrained(start)
        shutil.rmtree(folder / "training-first", ignore_errors=True)
    return replace(run.config, initialize_from=str(start), freeze="encoder")


def quantized(source: Path, config: TrainConfig) -> ImageTokenizer:
    """The tokenizer that a run has trained, with the quantizer of ``config``.

    A quantizer that starts by k-means is given the latents of ``IMAGES`` random crops.

    Raises:
        ValueError: the networks of ``config`` are others, or its quantizer does not start by k-means.
    """
    from gsqtok.tokenizer import ImageTokenizer

    tokenizer = ImageTokenizer.from_pretrained(source)
    own = ImageTokenizer(config.model)
    if own.config == tokenizer.config:
        return tokenizer
    for name in ("encoder", "decoder"):
        getattr(own, name).load_state_dict(getattr(tokenizer, name).state_dict())
    quantizer = own.quantizer.train()
    if not quantizer.follows:
        raise ValueError(f"{quantizer.name} is not fitted to latents: give it init: kmeans")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    own.to(device).encoder.eval()
    with torch.no_grad():
        latents = torch.cat([own.encoder(images.to(device)).movedim(1, -1).flatten(0, 2).float().cpu()
                             for images in _crops(config.data, config.seed)]).to(device)  # fmt: skip
        while quantizer.follows:  # few images may be too few latents at once
            quantizer.update(latents, latents.new_zeros(len(latents), quantizer.tokens_per_position, dtype=torch.int64))
    return own.eval()


def _crops(data: DataConfig, seed: int) -> Iterator[torch.Tensor]:
    """Random crops of training images, in batches (B, 3, size, size) in [-1, 1]."""
    from gsqtok.data import to_float, train_loader
    from gsqtok.training.images import training_images

    source, transform = training_images(data)
    batch = min(128, len(source))
    loader = train_loader(source, transform, batch_size=batch, seed=seed, workers=data.workers)
    for part in islice(loader, max(1, min(IMAGES, len(source)) // batch)):
        yield to_float(part["image"])
