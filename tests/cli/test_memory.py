"""That memory is kept: page faults of a process of its own, which the kernel counts."""

import subprocess
import sys

import pytest

from gsqtok.cli import memory

FAULTS = """
import resource, sys, torch
from gsqtok.cli.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(3 << 24).fill_(1)  # 192 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_large_tensor_takes_the_memory_of_the_last_one():
    def faults(way: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, way], check=True, capture_output=True, text=True)
        return int(done.stdout)

    assert faults("kept") < 100


def test_where_it_cannot_be_set_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "win32")
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())  # another C library
    assert memory.keep_freed_memory() is False
