"""The typed configuration of a training run; ``gsqtok train --help`` prints these docstrings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gsqtok.tokenizer import TokenizerConfig


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures come from and what becomes of them.

    Args:
        train: a folder of pictures, parquet files, tar shards or a hub name; several are joined.
        train_split: split of the training source, where it has several.
        validation: likewise, for measuring during training; without it nothing is measured.
        validation_split: split of the validation source, where it has several.
        size: pictures are cropped to size x size pixels.
        max_resize: before the random crop the short side becomes a random length from size to max_resize, at most its
            own; null resizes it to size.
        flip: mirror half of the pictures.
        streaming: read while training instead of preparing the whole source first.
        workers: processes that decode pictures, for each rank.
    """

    train: str | list[str] = ""
    train_split: str | None = None
    validation: str | list[str] = ""
    validation_split: str | None = None
    size: int = 256
    max_resize: int | None = None
    flip: bool = True
    streaming: bool = False
    workers: int = 4


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate; the defaults are the paper's VAE stage.

    Args:
        learning_rate: its peak.
        betas: AdamW's decay rates.
        eps: AdamW's epsilon.
        weight_decay: AdamW's weight decay.
        clip: the gradient's norm is clipped to this.
        warmup_steps: the learning rate rises linearly over these steps.
        schedule: constant, or cosine, which falls to zero at the last step.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 2.0
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"


@dataclass(frozen=True)
class LossConfig:
    """The tokenizer's loss: reconstruction + perceptual + quantizer.

    Args:
        reconstruction: mean squared (l2) or absolute (l1) error.
        reconstruction_weight: its weight.
        perceptual: lpips, or timm:NAME for feature distances in that backbone, such as timm:tf_efficientnet_lite0.
        perceptual_weight: its weight; 0 leaves the term out and loads no network.
        perceptual_file: the network's weights; null looks in the offline packages, then in the hub.
        quantizer_weight: weight of the quantizer's own loss.
    """

    reconstruction: Literal["l2", "l1"] = "l2"
    reconstruction_weight: float = 1.0
    perceptual: str = "lpips"
    perceptual_weight: float = 1.0
    perceptual_file: str | None = None
    quantizer_weight: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Args:
        output: the run's folder: configuration, checkpoints, logs, sample grids and the tokenizer itself.
        model: the tokenizer.
        data: the pictures.
        optimizer: AdamW and the learning rate.
        loss: the terms of the loss.
        steps: optimiser steps in all.
        batch_size: pictures a step, over all ranks and accumulated parts.
        gradient_accumulation: parts that a step's batch is split into, to save memory.
        precision: bf16 (autocast; the quantizer stays in float32) or fp32.
        ema_decay: decay of the averaged weights, which are the ones saved and measured.
        compile: compile the networks (GPU; the first steps take a minute longer).
        seed: of the weights, the order of pictures and their crops.
        log_every: steps between log lines.
        validate_every: steps between measurements on the validation source, and between sample grids.
        save_every: steps between checkpoints.
        keep_checkpoints: how many of the newest are kept.
    """

    output: str = "runs/tokenizer"
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    steps: int = 100_000
    batch_size: int = 256
    gradient_accumulation: int = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    ema_decay: float = 0.999
    compile: bool = False
    seed: int = 0
    log_every: int = 50
    validate_every: int = 5000
    save_every: int = 1000
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "gradient_accumulation", "log_every", "validate_every", "save_every")
        for name in (*positive, "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of gradient_accumulation {self.gradient_accumulation}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")


# What may differ between a run and its resumption: nothing that changes the weights of the steps already taken.
RESUMABLE = {
    "output",
    "steps",
    "compile",
    "log_every",
    "validate_every",
    "save_every",
    "keep_checkpoints",
    "data.validation",
    "data.validation_split",
    "data.workers",
}
