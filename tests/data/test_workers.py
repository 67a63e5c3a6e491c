import os
import signal
import subprocess
import sys

import processes
import pytest

from gsqtok.data.workers import STOP_SIGNALS, processors

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


RUN = """
import signal, sys
import torch
from gsqtok.data import ImageTransform, eval_loader, open_source, train_loader
from gsqtok.data.workers import STOP_SIGNALS, start_server
from gsqtok.tokens.chunk import Decode, Task
from gsqtok.tokens.crops import Crops
from gsqtok.tokens.decoders import Decoders

def main():
    start_server(1)
    source = open_source(sys.argv[1])
    for name in STOP_SIGNALS:  # as training does
        signal.signal(getattr(signal, name), lambda number, frame: None)
    tasks = [Task(0, i, span) for i, span in enumerate(source.spans(1))]
    readers = {
        "training": iter(train_loader(source, ImageTransform(8), batch_size=1, workers=1)),
        "evaluation": iter(eval_loader(source, ImageTransform(8), batch_size=1, workers=1)),
        "tokenizing": iter(Decoders(source, tasks, Decode(Crops(8), 1), 1, torch.device("cpu"), 20)),
    }
    first = {name: next(reader) for name, reader in readers.items()}
    print("working", flush=True)
    sys.stdin.readline()
    for name, reader in readers.items():
        for _ in range(19):  # more than are prepared ahead
            next(reader)
        print(name, "goes on", flush=True)

if __name__ == "__main__":
    main()
"""


def test_signals_to_all_processes_of_a_run_are_left_to_the_parent(tmp_path, encoded):
    """Ctrl-C in a terminal and a scheduler's signals reach workers, too; the parent still needs them to end well."""
    (tmp_path / "images").mkdir()
    for i in range(20):
        (tmp_path / f"images/{i:02d}.png").write_bytes(encoded(i))
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, tmp_path / "run.py", tmp_path / "images"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | processes.ENVIRONMENT
    parent = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)
    assert parent.stdout.readline() == "working\n"
    for name in STOP_SIGNALS:
        os.killpg(parent.pid, getattr(signal, name))
    said, warnings = parent.communicate("go on\n")
    assert said.splitlines() == ["training goes on", "evaluation goes on", "tokenizing goes on"], warnings
    assert parent.returncode == 0


def test_processors_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda who: set(range(12)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert processors() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert processors() == 1
