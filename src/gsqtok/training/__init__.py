"""Training: the typed configuration, the loop, and what makes a run restartable."""

from gsqtok.available import explained
from gsqtok.training.config import (
    AdversarialConfig,
    CropConfig,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
)

with explained("train"):
    from gsqtok.training.trainer import Trainer, train

__all__ = [
    "AdversarialConfig",
    "CropConfig",
    "DataConfig",
    "LossConfig",
    "OptimizerConfig",
    "TrainConfig",
    "Trainer",
    "train",
]
