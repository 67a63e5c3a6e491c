"""Triton's kernels in tests: on the GPU where there is one, elsewhere in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so it runs in a process apart.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs_kernels = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="kernels need a GPU or the interpreter")
runs_interpreter = pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the kernels run in this process")


def check_in_interpreter(*files: Path | str, marked: str = "not slow") -> None:
    """Run the tests of these files that have the marks, with the interpreter, and require that some pass and all do."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marked, *map(str, files)]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout
