"""Two processes on one global batch take the steps of one."""

import errno
import os
import signal
import subprocess
import sys

import processes
import pytest
import torch
from safetensors.torch import load_file

from gsqtok import ImageTokenizer

GAN = ["--adversarial.optimizer.eps", "1e-3", "--adversarial.augment", "[color, translation, cutout]"]
PENALTIES = ["--adversarial.r1", "1", "--adversarial.r1_every", "2", "--adversarial.adaptive_weight", "true"]


def two_ranks(*arguments):
    """``gsqtok`` in two processes that talk through gloo; a launcher that does not say which device."""
    done = processes.run_ranks(arguments)
    assert [rank.returncode for rank in done] == [0, 0], [rank.stderr for rank in done]
    return "".join(rank.stderr for rank in done)


def torchrun(*arguments):
    """The same, by PyTorch's own launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gsqtok"]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=os.environ | processes.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture
def arguments(demo_copy):
    def make(recipe, output, *more):
        return [
            *("train", recipe, "--data.train", str(demo_copy), "--output", str(output), "--data.size", "16"),
            *("--steps", "6", "--log_every", "1", "--model.multipliers", "[1, 1]", "--optimizer.eps", "1e-3"),
            *more,
        ]

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "launch", "more"),
    [
        ("smoke", torchrun, []),
        ("smoke", two_ranks, ["--gradient_accumulation", "2"]),
        ("smoke-gan", two_ranks, [*GAN, *PENALTIES, "--adversarial.start_step", "2"]),
        ("smoke-gan", two_ranks, [*GAN, "--adversarial.start_step", "0", "--gradient_accumulation", "2"]),
    ],
    ids=["vae", "vae in parts", "gan with penalties", "gan in parts"],
)
def test_two_ranks_equal_one(tmp_path, arguments, gsqtok_command, metrics, demo_copy, recipe, launch, more):
    more = [*more, "--data.validation", str(demo_copy)]
    result = gsqtok_command(*arguments(recipe, tmp_path / "one", *more))
    assert result.returncode == 0, result.stderr
    said = launch(*arguments(recipe, tmp_path / "two", *more))
    assert "on 2 x cpu" in said
    assert said.count("done:") == 1

    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["step"] for line in two] == [1, 2, 3, 4, 5, 6]
    compare_losses(one, two)
    for name in ("tokenizer", "checkpoints/step-00000006"):
        compare_states(tmp_path / "one" / name, tmp_path / "two" / name)
    contents = [sorted(p.name for p in (tmp_path / run).iterdir()) for run in ("one", "two")]
    assert contents[0] == contents[1]
    assert len(list((tmp_path / "two/tensorboard").rglob("events*"))) == 1


def die_while_saving():
    """The second rank is killed while it writes the checkpoint of step 4."""
    real = torch.save

    def save(value, target, *arguments, **options):
        if "writing-00000004" in str(target) and "usage-1" in str(target):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(value, target, *arguments, **options)

    torch.save = save


@pytest.mark.slow
def test_a_run_goes_on_however_many_ranks_share_it(tmp_path, arguments, gsqtok_command, metrics):
    """Two ranks that share the tokenizer out, one killed while it saves; then one process, shares again, two ranks."""
    more = [*GAN, "--adversarial.start_step", "1", "--save_every", "2", "--gradient_accumulation", "2"]
    sharded = ["--fsdp", "true", "--cuda_graphs", "false"]
    result = gsqtok_command(*arguments("smoke-gan", tmp_path / "one", *more))
    assert result.returncode == 0, result.stderr

    mixed = arguments("smoke-gan", tmp_path / "mixed", *more)
    first, second = processes.run_ranks([*mixed, *sharded], die_while_saving)
    assert first.returncode != 0
    assert second.returncode == -signal.SIGKILL, second.stderr
    assert "on 2 x cpu, float32, sharded" in first.stderr
    assert [file.name for file in (tmp_path / "mixed/checkpoints").glob("step-*")] == ["step-00000002"]
    ImageTokenizer.from_pretrained(tmp_path / "mixed")
    result = gsqtok_command(*mixed, "--steps", 4, "--resume")
    assert result.returncode == 0, result.stderr
    two_ranks(*mixed, *sharded, "--steps", 5, "--resume")
    two_ranks(*mixed, "--steps", 6, "--resume")
    one, mixed = metrics(tmp_path / "one"), metrics(tmp_path / "mixed")
    assert [line["step"] for line in mixed] == [1, 2, 3, 4, 5, 6]
    compare_losses(one, mixed)
    for name in ("tokenizer", "checkpoints/step-00000006"):
        compare_states(tmp_path / "one" / name, tmp_path / "mixed" / name)


def fill_the_second_disk():
    """What the second rank saves does not fit."""
    real = torch.save

    def save(value, target, *arguments, **options):
        if "usage-1" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(value, target, *arguments, **options)

    torch.save = save


@pytest.mark.slow
def test_a_rank_that_cannot_write_stops_all(tmp_path, arguments):
    """The second rank's disk is full: both end with one line that says so, and neither waits."""
    done = processes.run_ranks(arguments("smoke", tmp_path / "run", "--save_every", "3"), fill_the_second_disk)
    assert [rank.returncode for rank in done] == [1, 1]
    assert all(rank.stderr.count("checkpoint at step 3 could not be written") == 1 for rank in done)
    assert "No space left on device" in done[1].stderr
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


def compare_losses(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if name.startswith(("loss/", "discriminator/")):
                assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), (name, a["step"])


def compare_states(one, other):
    """Weights, moments and average in two folders."""
    names = sorted(file.name for pattern in ("*.safetensors", "optimizer*", "extra.pt") for file in one.glob(pattern))
    assert names
    for name in names:
        a, b = (
            load_file(folder / name)
            if name.endswith(".safetensors")
            else torch.load(folder / name, weights_only=True)  # which takes plain tensors alone
            for folder in (one, other)
        )
        for values in (a, b):
            values.pop("guards", None)
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4, msg=lambda message, name=name: f"{name}: {message}")
