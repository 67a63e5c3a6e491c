"""Killed at any moment and resumed, a run ends with the bits of one that nobody disturbed."""

import json
import random
import time

import processes
import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture
def arguments(demo_copy):
    return lambda recipe, output: [
        *("train", recipe, "--data.train", str(demo_copy), "--output", str(output)),
        *("--save_every", "4", "--log_every", "1", "--model.multipliers", "[1, 1]", "--data.size", "16"),
    ]


def assert_same(one, other, where=""):
    """Whatever a checkpoint holds, bit by bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["smoke", "smoke-gan"])
def test_killed_runs_end_with_the_same_bits(recipe, tmp_path, arguments, gsqtok_command, metrics):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = gsqtok_command(*arguments(recipe, whole))
    assert result.returncode == 0, result.stderr

    chance = random.Random(0)
    kills = 0
    for least in (6, 17, 31, 40):  # steps to reach before the blow falls
        process = processes.Command([*arguments(recipe, killed), "--resume"])
        deadline = time.monotonic() + 60
        while process.poll() is None and _steps(killed) < least and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.15))
        kills += process.poll() is None
        process.kill()
        process.finish()
    assert kills >= 3

    result = gsqtok_command(*arguments(recipe, killed), "--resume")
    assert result.returncode == 0, result.stderr
    weights, states = ["model.safetensors"], ["extra.pt", "optimizer.bin", "usage-0.pt"]
    if recipe == "smoke-gan":  # the discriminator with its LeCAM averages, and its optimiser
        weights.append("model_1.safetensors")
        states.append("optimizer_1.bin")
        assert "lecam.real" in load_file(whole / "checkpoints/step-00000050/model_1.safetensors")
    for name in ("tokenizer/model.safetensors", *(f"checkpoints/step-00000050/{name}" for name in weights)):
        assert_same(load_file(killed / name), load_file(whole / name), name)
    for name in states:
        one, other = (
            torch.load(run / "checkpoints/step-00000050" / name, weights_only=True) for run in (killed, whole)
        )
        assert_same(one, other, name)
    assert [line["step"] for line in metrics(killed)] == list(range(1, 51))
    for one, other in zip(metrics(killed), metrics(whole), strict=True):
        assert _losses(one) == _losses(other), one["step"]
    assert not list((killed / "checkpoints").glob(".*"))
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in whole.iterdir())


def _losses(line):
    return {name: value for name, value in line.items() if name.startswith(("loss/", "discriminator/"))}


def _steps(run):
    """The last step that metrics.jsonl speaks of; a run that resumes may still shorten the file."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    whole = [line for line in lines if line.endswith("}")]
    return json.loads(whole[-1])["step"] if whole else 0
