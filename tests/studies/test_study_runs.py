"""Runs of studies: done once, taken up again, and what fails stops nothing else."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import processes
import pytest
import torch
from PIL import Image

import gsqtok
from gsqtok.cli import main
from gsqtok.data import ImageTransform, eval_loader, open_source
from gsqtok.studies import STUDIES, runner, timing
from gsqtok.studies.run import Images, run_studies
from gsqtok.studies.runner import Outcome, PlacedRun, execute, run_all
from gsqtok.studies.scale import SCALES
from gsqtok.studies.spherical_error import spherical_error
from gsqtok.studies.study import Run, Study
from gsqtok.studies.table import Table
from gsqtok.training.interruption import InterruptedRunError

DEMO = str(Path(gsqtok.__file__).parent / "demo_images" / "*.png")


class Deadly:
    """Ends the process that unpickles it."""

    name, run, folder = "deadly", Run({}, SCALES["smoke"].config), Path("deadly")

    def __reduce__(self):
        return os._exit, (3,)


@pytest.fixture
def _forked(monkeypatch):
    """Workers from the server of the tests: what they import takes longer than what they do."""
    processes.serve()
    context = multiprocessing.get_context("forkserver")
    forked = SimpleNamespace(get_context=lambda method: context, active_children=multiprocessing.active_children)
    monkeypatch.setattr(runner, "multiprocessing", forked)


def test_workers_start_processes_as_any_other_process_does():
    """One that is spawned would spawn those that load its images, which takes seconds for each of them."""
    worker = runner._pool(None, 1)
    try:
        assert worker.submit(multiprocessing.get_start_method).result() == multiprocessing.get_all_start_methods()[0]
    finally:
        worker.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_a_measuring_network_without_weights_stops_before_the_first_training(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(SCALES, "smoke", dataclasses.replace(SCALES["smoke"], features="timm:tf_efficientnet_lite4"))
    with pytest.raises(FileNotFoundError, match="no weights for 'tf_efficientnet_lite4'"):
        run_studies([two_runs()], "smoke", Images(DEMO, DEMO), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_are_decoded_once_before_the_first_run(tmp_path, monkeypatch):
    seen, cache = [], tmp_path / "decoded"
    monkeypatch.setattr("gsqtok.studies.run.run_all", lambda runs, *_: seen.append(list(runs)))
    images = Images(DEMO, DEMO)
    run_studies([two_runs()], "smoke", dataclasses.replace(images, cache=str(cache)), tmp_path / "out")
    (index,) = cache.rglob("index.npz")
    before = index.stat().st_mtime_ns
    run_studies([two_runs()], "smoke", dataclasses.replace(images, cache=str(cache)), tmp_path / "again")
    run_studies([two_runs()], "smoke", images, tmp_path / "without")
    assert index.stat().st_mtime_ns == before
    assert [runs[0].run.config.data.cache for runs in seen] == [str(cache), str(cache), None]
    assert len({tuple(run.run.digest for run in runs) for runs in seen}) == 1, "a cache changes no result"


def two_runs():
    """A study of a training and a timing."""
    whole = STUDIES["vocabulary"]
    return dataclasses.replace(whole, runs=lambda scale: [whole.runs(scale)[0], whole.runs(scale)[-1]])


@pytest.mark.slow
@pytest.mark.usefixtures("_forked")
def test_from_the_command_line_and_again(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    study: Study = two_runs()
    monkeypatch.setitem(STUDIES, "vocabulary", study)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["study", "vocabulary", "--scale", "smoke", "--devices", "cpu", "-o", str(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "bits/px" in said
    assert "quantizer" in said
    folder = tmp_path / "vocabulary-smoke"
    table = Table.load(folder / "results.json")
    assert [row.state for row in table.rows] == ["done", "done"]
    trained, timed = (row.metrics for row in table.rows)
    assert 5 < trained["psnr"] < 30
    assert trained["bits_per_pixel"] == 0.25  # four bits for a position of 4 x 4 pixels
    assert 0 < trained["usage"] <= 1
    assert trained["spherical_error"] > 0
    assert timed["encode_ms"] > 0
    assert timed["quantizer_ms"] > 0
    page = (folder / "README.md").read_text()
    assert "gsqtok study vocabulary --scale smoke" in page
    assert "3 steps of 4 images" in page
    (run,) = (tmp_path / "runs").glob("*trained*")
    assert (run / "training" / "tokenizer" / "model.safetensors").exists()
    assert not (run / "training" / "checkpoints").exists()
    with Image.open(run / "images.png") as image:
        assert image.size == (5 * 130 + 2, 2 * 130 + 2)  # originals above reconstructions, enlarged
    assert "step 3" in (run / "log.txt").read_text()

    # what is done is not done again, by whichever study; a page that was lost is made anew
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("outcome.json")}
    (folder / "README.md").unlink()
    assert main(command) == 0
    assert (folder / "README.md").read_text() == page
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("outcome.json")} == before
    (other,) = run_studies([dataclasses.replace(study, name="other")], "smoke", Images(DEMO, DEMO), tmp_path)
    assert [row.metrics for row in other.rows] == [row.metrics for row in table.rows]

    # nor is what the results hold, where the runs' folders are gone
    shutil.rmtree(tmp_path / "runs")
    assert main(command) == 0
    again = Table.load(folder / "results.json")
    assert (again.rows, again.environment) == (table.rows, table.environment)


@pytest.mark.slow
@pytest.mark.usefixtures("_forked")
def test_a_dead_worker_and_a_missing_source_stop_nothing(tmp_path):
    config = dataclasses.replace(SCALES["smoke"].gsq(1, 4, 16), batch_size=2, steps=1)
    data = dataclasses.replace(config.data, train=str(tmp_path / "nowhere"), validation=DEMO)
    lost = PlacedRun("lost", Run({}, dataclasses.replace(config, data=data)), tmp_path / "lost", SCALES["smoke"])
    timed = PlacedRun("timed", Run({}, config, batch=1), tmp_path / "timed", SCALES["smoke"])
    seen = {}
    run_all(
        [Deadly(), lost, timed], [None], 1, lambda run, outcome, problem: seen.update({run.name: (outcome, problem)})
    )
    assert "was killed" in seen["deadly"][1]
    assert "nowhere" in seen["lost"][1]
    assert seen["timed"][0].state == "done"
    assert Outcome.of(tmp_path / "timed") == seen["timed"][0]
    assert Outcome.of(tmp_path / "lost") is None  # so that the next start tries again


def test_results_of_other_steps_are_kept_aside(tmp_path, monkeypatch, caplog):
    """They may have come without their runs, from another machine."""
    monkeypatch.setattr("gsqtok.studies.run.run_all", lambda *_: None)
    file = tmp_path / "vocabulary-smoke" / "results.json"
    (table,) = run_studies([two_runs()], "smoke", Images(DEMO, DEMO), tmp_path)
    done = [dataclasses.replace(row, metrics={"psnr": 20.0}, state="done") for row in table.rows]
    dataclasses.replace(table, rows=done, environment={"device": "CPU", "date": "2026-11-29"}).save(file)
    (again,) = run_studies([two_runs()], "smoke", Images(DEMO, DEMO), tmp_path)
    assert [row.state for row in again.rows] == ["done", "done"]
    assert not list(file.parent.glob("results-*"))
    (other,) = run_studies([two_runs()], "smoke", Images(DEMO, DEMO), tmp_path, steps=7)
    assert [row.state for row in other.rows] == ["not run", "not run"]
    (kept,) = file.parent.glob("results-*.json")
    assert Table.load(kept).rows == done
    assert "2 of 2 results are of other steps" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("_forked")
def test_a_signal_saves_what_trains_and_the_page_says_what_is_done(tmp_path):
    first = Run({"run": "long"}, dataclasses.replace(SCALES["smoke"].gsq(1, 4, 16), steps=10**6))
    study = dataclasses.replace(
        STUDIES["vocabulary"], runs=lambda scale: [first, STUDIES["vocabulary"].runs(scale)[-1]]
    )
    stopped = threading.Event()

    def stop():
        while not stopped.wait(0.05):
            if any("step 3/" in log.read_text() for log in tmp_path.glob("runs/*/log.txt")):
                for _ in range(2):  # timeout(1) sends it to the process, then to its group
                    os.kill(os.getpid(), signal.SIGINT)
                return

    told, watcher = [], threading.Thread(target=stop)
    watcher.start()
    try:
        with pytest.raises(InterruptedRunError, match=r"stopped by SIGINT.*goes on"):
            run_studies([study], "smoke", Images(DEMO, DEMO), tmp_path, progress=lambda *what: told.append(what))
    finally:
        stopped.set()
        watcher.join()
    assert told == []  # nothing failed
    assert list(tmp_path.glob("runs/*/training/checkpoints/step-*/sha256.json"))
    table = Table.load(tmp_path / "vocabulary-smoke" / "results.json")
    assert [row.state for row in table.rows] == ["not run", "not run"]
    assert (tmp_path / "vocabulary-smoke" / "README.md").exists()


def placed(name, batch=None):
    return PlacedRun(name, Run({}, SCALES["smoke"].config, batch), Path(name), SCALES["smoke"])


def test_codecs_are_measured_beside_the_gpus(monkeypatch):
    monkeypatch.setattr(Pool, "made", [])
    monkeypatch.setattr(runner, "_pool", lambda device, slots: Pool(device))
    monkeypatch.setattr(runner, "processors", lambda: 2)

    def wait(busy, timeout, return_when):
        future = next(f for pool in Pool.made for _, f in pool.pending if f in busy)
        future.set_result("done")
        return SimpleNamespace(done={future})

    monkeypatch.setattr(runner, "wait", wait)
    codecs = [dataclasses.replace(placed(name), run=Run({}, SCALES["smoke"].config, codec="webp@1")) for name in "ab"]
    run_all([*codecs, placed("c"), placed("d")], [0], 1, lambda *_: None)
    assert [[run.name for run, _ in pool.pending] for pool in Pool.made] == [["c", "d"], ["a", "b"]]


def test_timings_come_last_and_one_at_a_time(monkeypatch):
    runs, spread = [placed("a", 4), placed("b"), placed("c", 8)], []
    monkeypatch.setattr(runner, "_spread", lambda runs, slots, *_: spread.append(([r.name for r in runs], slots)))
    run_all(runs, [0, 1], 2, lambda *_: None)
    assert spread == [(["b"], [0, 1, 0, 1]), (["a", "c"], [0])]


class Pool:
    """A pool of one process, in a thread: what it is given to do ends when the test says so."""

    made: ClassVar[list] = []

    def __init__(self, slot):
        self.slot, self.pending = slot, []
        Pool.made.append(self)

    def submit(self, _, run):
        self.pending.append((run, Future()))
        return self.pending[-1][1]

    def shutdown(self):
        self.slot = "shut down"


def test_each_slot_has_a_run_as_long_as_there_are_any(monkeypatch):
    monkeypatch.setattr(Pool, "made", [])
    monkeypatch.setattr(runner, "_pool", lambda device, slots: Pool(device))
    told, ends = [], iter([(1, "b"), (0, "a"), (1, "c"), (0, OSError("full\ndisk"))])

    def wait(busy, timeout, return_when):
        assert len(busy) == min(2, 4 - len(told))
        slot, result = next(ends)
        _, future = Pool.made[slot].pending[-1]
        future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)
        return SimpleNamespace(done={future})

    monkeypatch.setattr(runner, "wait", wait)
    run_all([placed(name) for name in "abcd"], [0, 1], 1, lambda run, *end: told.append((run.name, *end)))
    assert told == [("b", "b", ""), ("a", "a", ""), ("c", "c", ""), ("d", None, "OSError: full disk")]
    assert [[run.name for run, _ in pool.pending] for pool in Pool.made] == [["a", "d"], ["b", "c"]]
    assert all(pool.slot == "shut down" for pool in Pool.made)


def test_a_run_that_diverges_is_a_result(tmp_path):
    config = SCALES["smoke"].gsq(1, 4, 16, steps=25)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train=DEMO, validation=DEMO),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e30),
    )
    outcome = execute(PlacedRun("steep", Run({}, config), tmp_path / "steep", SCALES["smoke"]))
    assert outcome.state == "diverged"
    assert "20 steps in a row" in outcome.message
    assert Outcome.of(tmp_path / "steep") == outcome


def test_timing_of_a_model(monkeypatch):
    monkeypatch.setattr(timing, "_SECONDS", 0.01)
    metrics = timing.time_tokenizer(SCALES["smoke"].gsq(2, 2, 16), 2, torch.device("cpu"))
    assert set(metrics) == {"quantizer_ms", "quantizer_step_ms", "encode_ms", "decode_ms", "quantizer_share"}
    assert all(value > 0 for value in metrics.values())
    assert metrics["quantizer_share"] == metrics["quantizer_ms"] / metrics["encode_ms"]


def test_spherical_error_against_all_pairs(tiny_tokenizer):
    source, transform = open_source(DEMO), ImageTransform(32)
    images = torch.cat([batch["image"] for batch in eval_loader(source, transform, batch_size=5)])
    with torch.no_grad():
        latent = tiny_tokenizer.encoder(images).movedim(1, -1).reshape(-1, 4).double()
    codebook = tiny_tokenizer.quantizer.codebook.detach().double()
    latent, codebook = (x / x.norm(dim=1, keepdim=True) for x in (latent, codebook))
    expected = torch.cdist(latent, codebook).square().amin(1).mean().item()
    assert spherical_error(tiny_tokenizer, source, transform, images=5) == pytest.approx(expected, rel=1e-5)
    rotated = codebook.flip(0)
    assert spherical_error(tiny_tokenizer, source, transform, 5, rotated.float()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing"], "no study 'nothing'; there are codebook"),
        (["groups"], "--data"),
        (["groups", "--scale", "smoke", "--devices", "two"], "GPUs by number"),
        (["groups", "--scale", "smoke", "--devices", "99"], "no GPU 99"),
        (["groups", "--scale", "smoke", "--per-device", "0"], "--per-device"),
        (["groups", "--scale", "smoke", "--steps", "0"], "steps must be at least 1"),
    ],
)
def test_wrong_usage_is_told(argv, message, capsys, tmp_path):
    assert main(["study", *argv, "-o", str(tmp_path)]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_ls(capsys):
    assert main(["study", "ls", "--scale", "paper"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in STUDIES)
