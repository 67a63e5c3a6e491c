"""Two processes on one global batch take the steps of one."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from gsqtok import ImageTokenizer

GAN = ["--adversarial.optimizer.eps", "1e-3", "--adversarial.augment", "[color, translation, cutout]"]
PENALTIES = ["--adversarial.r1", "1", "--adversarial.r1_every", "2", "--adversarial.adaptive_weight", "true"]


@pytest.fixture
def two_ranks(command_line):
    """``gsqtok`` in two processes that talk through gloo."""

    def run(*arguments):
        _, environment = command_line
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return subprocess.run(
            [*launcher, "-m", "gsqtok", *map(str, arguments)],
            env=environment,  # a launcher that does not say which device
            capture_output=True,
            text=True,
            timeout=200,
        )

    return run


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
    ("recipe", "more"),
    [
        ("smoke", []),
        ("smoke", ["--gradient_accumulation", "2"]),
        ("smoke-gan", [*GAN, *PENALTIES, "--adversarial.start_step", "2"]),
        ("smoke-gan", [*GAN, "--adversarial.start_step", "0", "--gradient_accumulation", "2"]),
    ],
    ids=["vae", "vae in parts", "gan with penalties", "gan in parts"],
)
def test_two_ranks_equal_one(tmp_path, arguments, gsqtok_command, two_ranks, metrics, demo_copy, recipe, more):
    more = [*more, "--data.validation", str(demo_copy)]
    result = gsqtok_command(*arguments(recipe, tmp_path / "one", *more))
    assert result.returncode == 0, result.stderr
    result = two_ranks(*arguments(recipe, tmp_path / "two", *more))
    assert result.returncode == 0, result.stderr
    assert "on 2 x cpu" in result.stderr
    assert result.stderr.count("done:") == 1

    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["step"] for line in two] == [1, 2, 3, 4, 5, 6]
    compare_losses(one, two)
    for name in ("tokenizer", "checkpoints/step-00000006"):
        compare_states(tmp_path / "one" / name, tmp_path / "two" / name)
    contents = [sorted(p.name for p in (tmp_path / run).iterdir()) for run in ("one", "two")]
    assert contents[0] == contents[1]
    assert len(list((tmp_path / "two/tensorboard").rglob("events*"))) == 1


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, arguments, gsqtok_command, two_ranks, metrics):
    more = [*GAN, "--adversarial.start_step", "1", "--save_every", "2"]
    result = gsqtok_command(*arguments("smoke-gan", tmp_path / "one", *more))
    assert result.returncode == 0, result.stderr
    for steps, launch in ((2, two_ranks), (4, gsqtok_command), (6, two_ranks)):
        command = arguments("smoke-gan", tmp_path / "mixed", *more, "--steps", steps, "--resume")
        result = launch(*command)
        assert result.returncode == 0, result.stderr
    one, mixed = metrics(tmp_path / "one"), metrics(tmp_path / "mixed")
    assert [line["step"] for line in mixed] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(one, mixed, strict=True):
        for name in ("loss/total", "discriminator/loss"):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), (name, a["step"])


@pytest.mark.slow
def test_a_sharded_run_survives_a_kill_and_goes_on_in_one_process(
    tmp_path, arguments, command_line, gsqtok_command, metrics
):
    """Steps 1 to 4 by two ranks that share the tokenizer out, one of them killed while it saves; 5 and 6 by one."""
    more = [*GAN, "--adversarial.start_step", "1", "--save_every", "2", "--gradient_accumulation", "2"]
    result = gsqtok_command(*arguments("smoke-gan", tmp_path / "one", *more))
    assert result.returncode == 0, result.stderr

    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys, torch\n"
        "from gsqtok.cli import main\n"
        "real = torch.save\n"
        "def save(value, target, *arguments, **options):\n"
        "    if 'writing-00000004' in str(target) and 'usage-1' in str(target):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(value, target, *arguments, **options)\n"
        f"if not os.path.exists(r'{tmp_path}/sharded'):\n"
        "    torch.save = save\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    _, environment = command_line
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    for status in (1, 0):
        sharded = [*more, "--fsdp", "true", "--cuda_graphs", "false", "--steps", "4", "--resume"]
        result = subprocess.run(
            [*launcher, *arguments("smoke-gan", tmp_path / "sharded", *sharded)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert result.returncode == status, result.stderr
    assert "on 2 x cpu, fp32, sharded; goes on after step 2" in result.stderr
    compare_states(tmp_path / "one/checkpoints/step-00000004", tmp_path / "sharded/checkpoints/step-00000004")
    ImageTokenizer.from_pretrained(tmp_path / "sharded")
    result = gsqtok_command(*arguments("smoke-gan", tmp_path / "sharded", *more, "--resume"))
    assert result.returncode == 0, result.stderr
    one, sharded = metrics(tmp_path / "one"), metrics(tmp_path / "sharded")
    assert [line["step"] for line in sharded] == [1, 2, 3, 4, 5, 6]
    compare_losses(one, sharded)
    compare_states(tmp_path / "one/tokenizer", tmp_path / "sharded/tokenizer")


@pytest.mark.slow
def test_a_rank_that_cannot_write_stops_all(tmp_path, arguments, command_line):
    """The second rank's disk is full: both end with one line that says so, and neither waits."""
    program = tmp_path / "program.py"
    program.write_text(
        "import errno, os, sys, torch\n"
        "from gsqtok.cli import main\n"
        "real = torch.save\n"
        "def save(value, target, *arguments, **options):\n"
        "    if 'usage-1' in str(target):\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    return real(value, target, *arguments, **options)\n"
        "torch.save = save\n"
        "status = main(sys.argv[1:])\n"
        f"open(r'{tmp_path}/status-' + os.environ['RANK'], 'w').write(str(status))\n"
    )
    _, environment = command_line
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, str(program), *arguments("smoke", tmp_path / "run", "--save_every", "3")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert [(tmp_path / f"status-{rank}").read_text() for rank in (0, 1)] == ["1", "1"], result.stderr
    assert result.stderr.count("checkpoint at step 3 could not be written") == 2
    assert "No space left on device" in result.stderr
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
