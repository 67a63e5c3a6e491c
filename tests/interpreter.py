"""Triton's kernels in tests: on the GPU where there is one, elsewhere in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so it runs in a process apart.
"""

import functools
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


def hasten() -> None:
    """Leave out half of the interpreter's time, in which it computes nothing.

    At each call of a function within a kernel it looks through Triton's language for what to replace, though the
    kernel's own call has replaced it; each sum and product of integers is made again in 64 bits, for an assertion that
    it leaves out without ``debug``; and a table of types is made anew for each value. There are no public switches:
    where a version of Triton has other names, nothing is changed.
    """
    from triton import language
    from triton.runtime import interpreter

    try:
        replace, scope, types = interpreter._patch_lang, interpreter._LangPatchScope, interpreter._get_np_dtype
        interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    except (AttributeError, TypeError):
        return

    def replace_once(function):
        seen = [part for part in function.__globals__.values() if part is language or part is language.core]
        done = seen and not any(language.core.is_builtin(part.load) for part in seen)
        return scope() if done else replace(function)

    interpreter._patch_lang = replace_once
    of_scalar = functools.lru_cache(types)
    interpreter._get_np_dtype = lambda kind: types(kind) if kind.scalar.is_ptr() else of_scalar(kind.scalar)


if INTERPRETED:
    hasten()


def check_in_interpreter(*files: Path | str, marked: str = "not slow") -> None:
    """Run the tests of these files that have the marks, with the interpreter, and require that some pass and all do."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marked, *map(str, files)]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout
