"""Killed at any moment and resumed, a run ends with the bits of one that nobody disturbed."""

import random
import signal

import processes
import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture
def arguments(demo_copy):
    return lambda recipe, output: [
        *("train", recipe, "--data.train", str(demo_copy), "--output", str(output), "--data.size", "16"),
        *("--steps", "18", "--save_every", "4", "--log_every", "1", "--model.multipliers", "[1, 1]"),
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

    # of the hundred changes of files that a run makes: those of its start, of each step, and twenty with a checkpoint
    for change in random.Random(recipe).sample(range(1, 50), 4):
        result = processes.run([*arguments(recipe, killed), "--resume"], before=processes.Killed(killed, change))
        assert result.returncode == -signal.SIGKILL, result.stderr

    result = gsqtok_command(*arguments(recipe, killed), "--resume")
    assert result.returncode == 0, result.stderr
    weights, states = ["model.safetensors"], ["extra.pt", "optimizer.bin", "usage-0.pt"]
    if recipe == "smoke-gan":  # the discriminator with its LeCAM averages, and its optimiser
        weights.append("model_1.safetensors")
        states.append("optimizer_1.bin")
        assert "lecam.real" in load_file(whole / "checkpoints/step-00000018/model_1.safetensors")
    for name in ("tokenizer/model.safetensors", *(f"checkpoints/step-00000018/{name}" for name in weights)):
        assert_same(load_file(killed / name), load_file(whole / name), name)
    for name in states:
        one, other = (
            torch.load(run / "checkpoints/step-00000018" / name, weights_only=True) for run in (killed, whole)
        )
        assert_same(one, other, name)
    assert [line["step"] for line in metrics(killed)] == list(range(1, 19))
    for one, other in zip(metrics(killed), metrics(whole), strict=True):
        assert _losses(one) == _losses(other), one["step"]
    assert not list((killed / "checkpoints").glob(".*"))
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in whole.iterdir())


def _losses(line):
    return {name: value for name, value in line.items() if name.startswith(("loss/", "discriminator/"))}
