"""Training: the typed configuration, the loop, and what makes a run restartable."""

from gsqtok.training.config import AdversarialConfig, DataConfig, LossConfig, OptimizerConfig, TrainConfig
from gsqtok.training.trainer import Trainer, train

__all__ = ["AdversarialConfig", "DataConfig", "LossConfig", "OptimizerConfig", "TrainConfig", "Trainer", "train"]
