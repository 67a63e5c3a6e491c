"""Measuring tokenizers: reconstruction, distribution and codebook metrics, with their protocol on record."""

from gsqtok.evaluation.codecs import Codec, evaluate_codec
from gsqtok.evaluation.distribution import DistributionMetrics
from gsqtok.evaluation.evaluate import Reconstruction, evaluate, measure
from gsqtok.evaluation.features import InceptionFeatures, TimmFeatures, build_features
from gsqtok.evaluation.frechet import FrechetDistance, Reference, ReferenceSetError
from gsqtok.evaluation.metrics import CodebookUsage, ReconstructionMetrics
from gsqtok.evaluation.neighbours import precision_recall_density_coverage
from gsqtok.evaluation.perceptual import PictureDistance
from gsqtok.evaluation.protocol import PROTOCOLS
from gsqtok.evaluation.result import Result, ResultError, differences

__all__ = [
    "PROTOCOLS",
    "CodebookUsage",
    "Codec",
    "DistributionMetrics",
    "FrechetDistance",
    "InceptionFeatures",
    "PictureDistance",
    "Reconstruction",
    "ReconstructionMetrics",
    "Reference",
    "ReferenceSetError",
    "Result",
    "ResultError",
    "TimmFeatures",
    "build_features",
    "differences",
    "evaluate",
    "evaluate_codec",
    "measure",
    "precision_recall_density_coverage",
]
