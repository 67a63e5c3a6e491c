import os
import signal
import subprocess
import sys

import pytest

from gsqtok.data.workers import processors

CHILD = """
import multiprocessing, sys, threading
from gsqtok.data.workers import end_with_parent

def child():
    end_with_parent()
    print("ready", flush=True)
    threading.Event().wait(600)
    print("outlived its parent")

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
    process.start()
    print(process.pid, flush=True)
    process.join()
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_ends_with_a_parent_that_is_killed(method, tmp_path):
    (tmp_path / "family.py").write_text(CHILD)
    parent = subprocess.Popen([sys.executable, tmp_path / "family.py", method], stdout=subprocess.PIPE, text=True)
    said = {parent.stdout.readline().strip() for _ in range(2)}
    (child,) = (int(line) for line in said - {"ready"})
    os.kill(child, 0)  # is there
    parent.send_signal(signal.SIGKILL)
    assert parent.stdout.read() == ""  # which ends with the last process that could write there
    parent.wait()


def test_processors_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda who: set(range(12)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert processors() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert processors() == 1
