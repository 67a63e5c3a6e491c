"""Two processes on one global batch take the steps of one."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_equal_one(tmp_path, command_line, gsqtok_command, metrics, demo_copy, accumulation):
    def arguments(output):
        return [
            *("train", "smoke", "--data.train", str(demo_copy), "--output", str(output), "--data.size", "16"),
            *("--steps", "6", "--log_every", "1", "--model.multipliers", "[1, 1]", "--optimizer.eps", "1e-3"),
            *("--gradient_accumulation", str(accumulation), "--data.validation", str(demo_copy)),
        ]

    result = gsqtok_command(*arguments(tmp_path / "one"))
    assert result.returncode == 0, result.stderr
    _, environment = command_line
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, "-m", "gsqtok", *arguments(tmp_path / "two")],
        env=environment | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    assert "on 2 x cpu" in result.stderr
    assert result.stderr.count("done:") == 1

    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["step"] for line in two] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(one, two, strict=True):
        for name in ("loss/total", "loss/reconstruction", "loss/gradient_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-3), (name, a["step"])
    for name in ("tokenizer/model.safetensors", "checkpoints/step-00000006/model.safetensors"):
        single, double = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        for key, value in single.items():
            torch.testing.assert_close(double[key], value, rtol=1e-3, atol=1e-4, msg=key)
    contents = [sorted(p.name for p in (tmp_path / run).iterdir()) for run in ("one", "two")]
    assert contents[0] == contents[1]
    assert len(list((tmp_path / "two/tensorboard").rglob("events*"))) == 1
