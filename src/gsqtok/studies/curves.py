"""What a training's log says of its course: gradients, skipped steps, and how the codebook was used over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

_COUNTED = 12  # measurements of the codebook that are kept


def training_metrics(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Sum up the lines of ``metrics.jsonl``.

    Returns:
        ``skipped_steps``; of the steps after the first tenth, ``gradient_norm`` (the median over the log's windows,
        before clipping) and ``gradient_peak`` (the largest norm of a single step, over that median); and where the
        codebook was counted, over equally many images each time, ``training_step_K``, ``training_usage_K`` and
        ``training_perplexity_K`` for K = 1, 2, ...
    """
    metrics = {"skipped_steps": next((x["skipped_steps"] for x in reversed(lines) if "skipped_steps" in x), 0.0)}
    late = [x for x in lines if "loss/gradient_norm" in x and x["step"] > lines[-1]["step"] / 10]
    norms, peaks = ([x[name] for x in late] for name in ("loss/gradient_norm", "loss/gradient_norm_max"))
    if norms := [norm for norm in norms if math.isfinite(norm)]:
        metrics["gradient_norm"] = median(norms)
        metrics["gradient_peak"] = max(peak for peak in peaks if math.isfinite(peak)) / metrics["gradient_norm"]
    counted = [x for x in lines if "codebook/perplexity" in x]
    # the last count may be over fewer images
    counted = [x for x in counted if x["step"] % counted[0]["step"] == 0]
    for k, x in enumerate(counted[-_COUNTED:], 1):
        metrics[f"training_step_{k}"] = float(x["step"])
        metrics |= {f"training_{name}_{k}": x[f"codebook/{name}"] for name in ("usage", "perplexity")}
    return metrics
