"""The typed configuration of a prior's training; ``gsqtok prior train --help`` prints these docstrings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gsqtok.generation.prior import PriorModelConfig
from gsqtok.options import Count, Decay, Natural, Share, check
from gsqtok.training.config import OptimizerConfig


@dataclass(frozen=True)
class TokenDataConfig:
    """Where the tokens come from.

    Args:
        train: a token data set that gsqtok tokenize wrote, all of whose grids have one size.
        validation: likewise, of images that are held out; without it nothing is measured.
        label: the column of classes 0, 1, ...; null trains without classes.
        tokenizer: the one that made the tokens; null takes the one that the data set names.
        workers: processes that read tokens, for each rank.
    """

    train: str = ""
    validation: str = ""
    label: str | None = None
    tokenizer: str | None = None
    workers: Natural = 2

    def __post_init__(self) -> None:
        check(self, "data.")


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.05, clip=1.0, warmup_steps=100, schedule="cosine"
    )


@dataclass(frozen=True)
class PriorConfig:
    """One training run of a prior.

    Args:
        output: the run's folder: configuration, checkpoints, logs and the prior itself.
        model: the network.
        data: the tokens.
        optimizer: AdamW and the learning rate.
        steps: optimiser steps in all.
        batch_size: images a step, over all ranks.
        precision: bfloat16 (autocast) or float32.
        ema_decay: decay of the averaged weights, which are the ones saved and measured.
        loss_share: share of the positions of each image whose tokens are in a step's loss; below 1 a step takes less
            time and memory where V is large and logits are most of its work.
        label_dropout: share of images whose class is hidden, for guidance and for compression.
        seed: of the weights, the order of images and what is masked.
        log_every: steps between log lines.
        validate_every: steps between measurements on the validation tokens.
        save_every: steps between checkpoints.
        keep_checkpoints: how many of the newest are kept.
        trackers: where the curves go: tensorboard, wandb, or another that Accelerate knows.
    """

    output: str = "runs/prior"
    model: PriorModelConfig = field(default_factory=PriorModelConfig)
    data: TokenDataConfig = field(default_factory=TokenDataConfig)
    optimizer: OptimizerConfig = field(default_factory=_optimizer)
    steps: Count = 20_000
    batch_size: Count = 256
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    ema_decay: Decay = 0.999
    loss_share: Share = 1.0
    label_dropout: Decay = 0.1
    seed: Natural = 0
    log_every: Count = 50
    validate_every: Count = 2000
    save_every: Count = 1000
    keep_checkpoints: Count = 2
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        check(self)
