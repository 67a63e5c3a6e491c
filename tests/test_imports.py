"""What importing a part of the package brings along, in a fresh process."""

import subprocess
import sys

import processes
import pytest

HEAVY = {"datasets", "huggingface_hub.hf_api", "matplotlib", "pandas", "scipy", "timm", "torchmetrics", "torchvision"}
PARTS = [
    "training",
    "generation",
    "generation.train",
    "tokens.run",
    "tokens.verify",
    "evaluation.reconstruct",
    "evaluation",
    "evaluation.codecs",
    "evaluation.usage",
]


# PyTorch is imported once, and a process forked for each part.
FORKS = """
import os, sys
import torch
for part in sys.argv[1:]:
    if os.fork() == 0:
        __import__(f"gsqtok.{part}")
        print(part, *sys.modules, flush=True)
        sys.exit()
    assert os.wait()[1] == 0
"""


@pytest.fixture(scope="module")
def modules():
    """What is imported after each part, by its name."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, *PARTS],
        env=processes.ENVIRONMENT | {"PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return {part: set(names) for part, *names in map(str.split, done.stdout.splitlines())}


@pytest.mark.parametrize("part", PARTS)
def test_what_takes_seconds_is_imported_where_it_is_used(part, modules):
    assert f"gsqtok.{part}" in modules[part]
    assert not HEAVY & modules[part]
