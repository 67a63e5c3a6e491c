"""Two processes on one global batch take the steps of one."""

import errno
import os
import signal

import float64
import processes
import pytest
import torch
from safetensors.torch import load_file

from gsqtok import ImageTokenizer

GAN = ["--adversarial.augment", "[color, translation, cutout]"]
CROPS = "[{size: 8, share: 1, scales: [1, 2]}, {size: 16, share: 1}]"
PENALTIES = ["--adversarial.r1", "1", "--adversarial.r1_every", "2", "--adversarial.adaptive_weight", "true"]


def ranks(arguments, count, launch=processes.run_ranks):
    """What ``gsqtok`` in so many processes, which talk through gloo, says."""
    done = launch(arguments, float64.everywhere, count)
    assert [rank.returncode for rank in done] == [0] * count, [rank.stderr for rank in done]
    return "".join(rank.stderr for rank in done)


@pytest.fixture
def arguments(demo_copy):
    def make(recipe, output, *more):
        return [
            *("train", recipe, "--data.train", str(demo_copy), "--output", str(output), "--data.size", "16"),
            *("--steps", "3", "--log_every", "1", "--save_every", "1", "--model.multipliers", "[1, 1]"),
            *("--keep_checkpoints", "6", *more),
        ]

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "launch", "more"),
    [
        ("smoke", processes.torchrun, []),
        ("smoke", processes.run_ranks, ["--gradient_accumulation", "2", "--data.crops", CROPS]),
        ("smoke-gan", processes.run_ranks, [*GAN, *PENALTIES, "--adversarial.start_step", "1"]),
        ("smoke-gan", processes.run_ranks, [*GAN, "--adversarial.start_step", "0", "--gradient_accumulation", "2"]),
    ],
    ids=["vae", "vae of several sizes in parts", "gan with penalties", "gan in parts"],
)
def test_two_ranks_equal_one(tmp_path, arguments, metrics, demo_copy, recipe, launch, more):
    """Gradients and update of a step from the same weights, then two more, which see what the first left behind."""
    more = [*more, "--data.validation", str(demo_copy)]
    ranks(arguments(recipe, tmp_path / "one", *more), 1)
    said = ranks(arguments(recipe, tmp_path / "two", *more), 2, launch)
    assert "on 2 x cpu" in said
    assert said.count("done:") == 1
    compare_runs(tmp_path / "one", tmp_path / "two", metrics, steps=3)
    contents = [sorted(p.name for p in (tmp_path / run).glob("[!.]*")) for run in ("one", "two")]
    assert contents[0] == contents[1]
    assert len(list((tmp_path / "two/tensorboard").rglob("events*"))) == 1


def die_while_saving():
    """The second rank is killed while it writes the checkpoint of step 4."""
    float64.everywhere()
    real = torch.save

    def save(value, target, *arguments, **options):
        if "writing-00000004" in str(target) and "usage-1" in str(target):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(value, target, *arguments, **options)

    torch.save = save


@pytest.mark.slow
def test_a_run_goes_on_however_many_ranks_share_it(tmp_path, arguments, gsqtok_command, metrics):
    """Two ranks, one of which is killed while it saves; then one process, then two ranks again."""
    more = [*GAN, "--adversarial.start_step", "1", "--gradient_accumulation", "2", "--steps", "6", "--save_every", "2"]
    ranks(arguments("smoke-gan", tmp_path / "one", *more), 1)

    mixed = arguments("smoke-gan", tmp_path / "mixed", *more)
    first, second = processes.run_ranks(mixed, die_while_saving)
    assert first.returncode != 0
    assert second.returncode == -signal.SIGKILL, second.stderr
    assert [file.name for file in (tmp_path / "mixed/checkpoints").glob("step-*")] == ["step-00000002"]
    ImageTokenizer.from_pretrained(tmp_path / "mixed")
    ranks([*mixed, "--steps", "4", "--resume"], 1)
    ranks([*mixed, "--resume"], 2)
    compare_runs(tmp_path / "one", tmp_path / "mixed", metrics, steps=6)


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


def compare_runs(one, other, metrics, steps):
    """Losses of every step, and weights, moments and average of every checkpoint that both have, the first one's first.

    The moments after the first step are its gradients. A real difference, like a mean over a rank instead of one over
    the batch, is 1e-4 and more; rounding is under 1e-10, and Adam, whose epsilon is 1e-8, makes of a gradient that is
    nothing but rounding (of a bias before a norm) a step of 1e-9.
    """
    lines = metrics(one), metrics(other)
    for a, b in zip(*lines, strict=True):
        assert a.keys() == b.keys()
        named = [name for name in a if name.startswith(("loss/", "discriminator/"))]
        assert {name: b[name] for name in named} == pytest.approx({name: a[name] for name in named}, rel=1e-7, abs=1e-9)
    assert [line["step"] for line in lines[1]] == list(range(1, steps + 1))
    saved = [sorted(folder.name for folder in (run / "checkpoints").iterdir()) for run in (one, other)]
    common = [f"checkpoints/{name}" for name in saved[0] if name in saved[1]]
    assert f"checkpoints/step-{steps:08d}" in common
    for name in [*common, "tokenizer"]:
        compare_states(one / name, other / name)


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
        where = f"{one.name}/{name}"
        torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-7, msg=lambda message, where=where: f"{where}: {message}")
