"""Real processes: killed at any moment, many under torchrun, actors lost on Ray; the same shards from all."""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import processes
import psutil
import pytest
from token_images import BAD, hashes, png, skipped_of, write_tar

from gsqtok.data.workers import end_with_parent
from gsqtok.tokens import decoders, engines
from gsqtok.tokens.chunk import Decode
from gsqtok.tokens.crops import Crops
from gsqtok.tokens.verify import verify

pytestmark = pytest.mark.slow
# For processes that import this file.
ENVIRONMENT = processes.ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([processes.SOURCE, *sys.path])}


@pytest.fixture
def many(tmp_path):
    """24 units of tar shards of uneven length, the last one damaged."""
    (tmp_path / "tars").mkdir()
    for shard, length in enumerate((50, 3, 37)):
        members = [(f"{shard}-{i:02d}.png", png(1000 * shard + i)) for i in range(length)]
        write_tar(tmp_path / f"tars/{shard}.tar", [*members, (f"{shard}-bad.png", b"no image")])
    with (tmp_path / "tars/2.tar").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 12_000)
    return tmp_path / "tars"


def test_kill_and_resume_at_random_points(many, tmp_path, run, command):
    run(many, tmp_path / "whole")
    out = tmp_path / "out"
    for change in (3, *random.Random(0).sample(range(10, 100), 2)):  # 3: while the plan is made
        done = processes.run(command(many, out), before=processes.Killed(out, change))
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (out / "manifest.json").exists()
    run(many, out)
    assert hashes(out) == hashes(tmp_path / "whole")
    assert skipped_of(out) == skipped_of(tmp_path / "whole")
    assert verify(out) == []


@pytest.mark.parametrize(("launch", "count"), [(processes.torchrun, 2), (processes.run_ranks, 3)])
def test_several_processes_give_the_same_shards(many, tmp_path, run, command, launch, count):
    run(many, tmp_path / "whole")
    for done in launch(command(many, tmp_path / "out"), count=count):
        assert done.returncode == 0, done.stderr[-3000:]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert skipped_of(tmp_path / "out") == skipped_of(tmp_path / "whole")
    assert verify(tmp_path / "out") == []


def dies_at_its_second_chunk(number):
    """In place of what a decoding process does at its start."""
    end_with_parent(number)
    decode, chunks = Decode.__call__, itertools.count(1)

    def decode_or_die(self, *arguments):
        if next(chunks) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(self, *arguments)

    Decode.__call__ = decode_or_die


def decoding_dies():
    decoders.end_with_parent = dies_at_its_second_chunk


def test_a_dead_decoding_process_ends_in_a_line_and_the_next_run_goes_on(many, tmp_path, run, command):
    arguments = command(many, tmp_path / "out", "--workers", "1", "--size", "128", "--max-pixels", "5001")
    done = processes.run(arguments, before=decoding_dies)
    assert done.returncode == 1, done.stderr
    assert "a decoding process died" in done.stderr
    run(many, tmp_path / "out", crops=Crops(128), max_pixels=5001)
    assert verify(tmp_path / "out") == []


def never_decodes(number):
    """In place of what a decoding process does at its start: it says that it is there, and waits for ever."""
    end_with_parent(number)
    with Path(os.environ["PIDS"]).open("w") as pipe:
        pipe.write(f"{os.getpid()}\n")
    threading.Event().wait()


SILENT = f"""
import sys
from {__name__} import decoders, never_decodes
from gsqtok.cli import main
decoders.end_with_parent = never_decodes
sys.exit(main(sys.argv[1:]))
"""


def test_decoding_processes_end_with_the_one_that_was_killed(mixed, tmp_path, command):
    arguments = command(mixed, tmp_path / "out", "--workers", "1", "--size", "256", "--max-pixels", "5001")
    os.mkfifo(tmp_path / "pids")
    environment = os.environ | ENVIRONMENT | {"PIDS": str(tmp_path / "pids")}
    process = subprocess.Popen([sys.executable, "-c", SILENT, *arguments], env=environment)
    with (tmp_path / "pids").open() as pipe:  # waits until it is opened for writing
        theirs = [psutil.Process(int(pipe.readline()))]
    theirs += psutil.Process(process.pid).children()  # the process that forks them, and the one that tidies up
    process.kill()
    process.wait()
    assert len(theirs) >= 2
    assert psutil.wait_procs(theirs, timeout=processes.PATIENCE)[1] == []


class DiesOnce(engines._RayDecode):
    """The first of them dies with its first chunk."""

    def __call__(self, batch):
        try:
            os.close(os.open(os.environ["DIED"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().__call__(batch)
        os.kill(os.getpid(), signal.SIGKILL)


def an_actor_dies():
    engines._RayDecode = DiesOnce


def test_ray_with_a_killed_actor_gives_the_same_shards(mixed, tmp_path, run, command):
    pytest.importorskip("ray.data")
    run(mixed, tmp_path / "whole")
    environment = ENVIRONMENT | {"RAY_DATA_DISABLE_PROGRESS_BARS": "1", "DIED": str(tmp_path / "died")}
    environment["RAY_gcs_server_port_wait_time_s"] = str(processes.PATIENCE)
    done = processes.run(command(mixed, tmp_path / "out", "--engine", "ray"), environment, an_actor_dies)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "died").exists()
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert skipped_of(tmp_path / "out").keys() == BAD.keys()
    assert verify(tmp_path / "out") == []
