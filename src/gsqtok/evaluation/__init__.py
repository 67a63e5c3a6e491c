"""Measuring tokenizers: reconstruction, distribution and codebook metrics, with their protocol on record.

Names are loaded on first use: torchmetrics takes longer to import than PyTorch, and counting tokens or comparing
results needs none of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsqtok.evaluation.codecs import Codec, evaluate_codec
    from gsqtok.evaluation.distribution import DistributionMetrics
    from gsqtok.evaluation.features import InceptionFeatures, TimmFeatures, build_features
    from gsqtok.evaluation.frechet import FrechetDistance, Reference, ReferenceSetError
    from gsqtok.evaluation.neighbours import precision_recall_density_coverage
    from gsqtok.evaluation.perceptual import ImageDistance
    from gsqtok.evaluation.protocol import PROTOCOLS
    from gsqtok.evaluation.result import Result, ResultError, differences
    from gsqtok.evaluation.run import Reconstruction, evaluate, measure
    from gsqtok.evaluation.tokbench import evaluate_tokbench
    from gsqtok.evaluation.usage import CodebookUsage

__all__ = [
    "PROTOCOLS",
    "CodebookUsage",
    "Codec",
    "DistributionMetrics",
    "FrechetDistance",
    "ImageDistance",
    "InceptionFeatures",
    "Reconstruction",
    "Reference",
    "ReferenceSetError",
    "Result",
    "ResultError",
    "TimmFeatures",
    "build_features",
    "differences",
    "evaluate",
    "evaluate_codec",
    "evaluate_tokbench",
    "measure",
    "precision_recall_density_coverage",
]
_HOMES = {
    "PROTOCOLS": "protocol",
    "CodebookUsage": "usage",
    **dict.fromkeys(("Codec", "evaluate_codec"), "codecs"),
    "DistributionMetrics": "distribution",
    **dict.fromkeys(("FrechetDistance", "Reference", "ReferenceSetError"), "frechet"),
    **dict.fromkeys(("InceptionFeatures", "TimmFeatures", "build_features"), "features"),
    "ImageDistance": "perceptual",
    **dict.fromkeys(("Result", "ResultError", "differences"), "result"),
    "evaluate_tokbench": "tokbench",
    "precision_recall_density_coverage": "neighbours",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"gsqtok.evaluation.{_HOMES.get(name, 'run')}"), name)
    raise AttributeError(f"module 'gsqtok.evaluation' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
