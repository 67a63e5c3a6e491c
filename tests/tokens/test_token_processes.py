"""Real processes: killed at any moment, many under torchrun, actors lost on Ray; the same shards from all."""

import contextlib
import os
import random
import subprocess
import sys
import time

import processes
import psutil
import pytest
from token_images import BAD, hashes, png, skipped_of, write_tar

from gsqtok.tokens.crops import Crops
from gsqtok.tokens.verify import verify

pytestmark = pytest.mark.slow


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
    units = len(hashes(tmp_path / "whole"))
    generator = random.Random(0)
    out, kills = tmp_path / "out", 0
    for target in (0, *sorted(generator.sample(range(1, units), 2))):  # 0: while the plan is made
        process = processes.Command(command(many, out))
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            names = [name for _, _, names in os.walk(out) for name in names if not name.endswith(".lock")]
            if names and sum(name.endswith(".json") and name[0].isdigit() for name in names) >= target:
                process.kill()
                kills += 1
                break
        done = process.finish(60)
        assert not (out / "manifest.json").exists() or done.returncode == 0
    assert kills >= 2
    run(many, out)
    assert hashes(out) == hashes(tmp_path / "whole")
    assert skipped_of(out) == skipped_of(tmp_path / "whole")
    assert verify(out) == []


def torchrun(arguments, count):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = os.environ | processes.ENVIRONMENT
    return [subprocess.run([*command, "-m", "gsqtok", *arguments], env=environment, stderr=subprocess.PIPE, text=True)]


@pytest.mark.parametrize(("launch", "count"), [(torchrun, 2), (processes.run_ranks, 3)])
def test_several_processes_give_the_same_shards(many, tmp_path, run, command, launch, count):
    run(many, tmp_path / "whole")
    for done in launch(command(many, tmp_path / "out"), count=count):
        assert done.returncode == 0, done.stderr[-3000:]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert skipped_of(tmp_path / "out") == skipped_of(tmp_path / "whole")
    assert verify(tmp_path / "out") == []


def test_a_dead_decoding_process_ends_in_a_line_and_the_next_run_goes_on(many, tmp_path, run, command):
    # more chunks than the process decodes ahead: it cannot be done when it is killed
    arguments = command(many, tmp_path / "out", "--workers", "1", "--size", "128", "--max-pixels", "5001")
    process = subprocess.Popen(  # not from the server of the tests, whose child the decoding process would be
        [sys.executable, "-m", "gsqtok", *arguments],
        env=os.environ | processes.ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    watched = psutil.Process(process.pid)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        workers = [own for child in watched.children() for own in child.children()]  # of the process that forks them
        if workers:
            workers[0].kill()
            break
        time.sleep(0.005)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 1, error
    assert "a decoding process died" in error
    run(many, tmp_path / "out", crops=Crops(128), max_pixels=5001)
    assert verify(tmp_path / "out") == []


def test_decoding_processes_end_with_the_one_that_was_killed(mixed, tmp_path, command):
    arguments = command(mixed, tmp_path / "out", "--workers", "1", "--size", "256", "--max-pixels", "5001")
    process = subprocess.Popen(
        [sys.executable, "-m", "gsqtok", *arguments],
        env=os.environ | processes.ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    watched, theirs = psutil.Process(process.pid), []
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not theirs:
        with contextlib.suppress(psutil.NoSuchProcess):  # a child that ends between the two questions
            theirs = [own for child in watched.children() for own in child.children()]
        time.sleep(0.005)
    theirs += watched.children()
    process.kill()
    process.wait(60)
    assert len(theirs) >= 2
    assert psutil.wait_procs(theirs, timeout=60)[1] == []


def test_ray_with_a_killed_actor_gives_the_same_shards(mixed, tmp_path, run, command):
    pytest.importorskip("ray.data")
    run(mixed, tmp_path / "whole")
    environment = processes.ENVIRONMENT | {"RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    process = processes.Command(command(mixed, tmp_path / "out", "--engine", "ray"), environment)
    killed = False
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline and not killed:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if child.name().startswith("ray::MapWorker") or "ray::MapWorker" in " ".join(child.cmdline()):
                    child.kill()
                    killed = True
                    break
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    done = process.finish(250)
    assert killed
    assert done.returncode == 0, done.stderr[-3000:]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert skipped_of(tmp_path / "out").keys() == BAD.keys()
    assert verify(tmp_path / "out") == []
