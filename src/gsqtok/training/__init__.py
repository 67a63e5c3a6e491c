"""Training: the typed configuration, the loop, and what makes a run restartable.

The loop is loaded on first use: recipes and their options need none of its packages.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gsqtok.available import explained
from gsqtok.training.config import (
    AdversarialConfig,
    CropConfig,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
)

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    if name in ("Trainer", "train"):
        with explained("train"):
            return getattr(import_module("gsqtok.training.trainer"), name)
    raise AttributeError(f"module 'gsqtok.training' has no attribute '{name}'")
