"""What importing a part of the package brings along, in a fresh process."""

import subprocess
import sys

import processes
import pytest

HEAVY = {"datasets", "huggingface_hub.hf_api", "matplotlib", "pandas", "scipy", "timm", "torchmetrics", "torchvision"}
PARTS = [
    "training",
    "tokens.run",
    "tokens.verify",
    "evaluation.reconstruct",
    "evaluation",
    "evaluation.codecs",
    "evaluation.usage",
]


@pytest.mark.parametrize("part", PARTS)
def test_what_takes_seconds_is_imported_where_it_is_used(part):
    code = f"import sys, gsqtok.{part}; print(*sys.modules)"
    environment = processes.ENVIRONMENT | {"PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())
