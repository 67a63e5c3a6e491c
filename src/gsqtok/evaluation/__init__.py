"""Measuring tokenizers: reconstruction and codebook metrics."""

from gsqtok.evaluation.evaluate import evaluate
from gsqtok.evaluation.metrics import CodebookUsage, ReconstructionMetrics

__all__ = ["CodebookUsage", "ReconstructionMetrics", "evaluate"]
