"""What a training's log says of its course."""

import math

from gsqtok.studies.curves import training_metrics


def line(step, norm, peak, **more):
    return {"step": step, "loss/gradient_norm": norm, "loss/gradient_norm_max": peak, "skipped_steps": 0} | more


def test_gradients_after_the_first_tenth_and_skipped_steps():
    lines = [line(10, 90.0, 900.0), *(line(step, 2.0, 3.0) for step in range(20, 100, 10)), line(100, 4.0, 8.0)]
    lines[-1]["skipped_steps"] = 3
    metrics = training_metrics(lines)
    assert metrics == {"skipped_steps": 3, "gradient_norm": 2.0, "gradient_peak": 4.0}
    broken = [line(10, 1.0, 1.0), line(50, math.nan, math.nan), line(100, 2.0, 5.0)]
    assert training_metrics(broken)["gradient_peak"] == 2.5  # a step that was skipped has no norm


def test_usage_is_counted_over_equally_many_images():
    counts = [(200, 0.5, 90.0), (400, 0.6, 95.0), (500, 0.1, 20.0)]  # the last over half as many
    lines = [{"step": s, "codebook/usage": u, "codebook/perplexity": p} for s, u, p in counts]
    metrics = training_metrics([*lines, line(500, 1.0, 1.0)])
    assert [metrics[f"training_perplexity_{k}"] for k in (1, 2)] == [90.0, 95.0]
    assert metrics["training_step_2"] == 400
    assert "training_usage_3" not in metrics


def test_a_run_without_lines():
    assert training_metrics([]) == {"skipped_steps": 0.0}
