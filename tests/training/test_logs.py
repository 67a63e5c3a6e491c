"""Where the curves go."""

import processes
import pytest
from accelerate import tracking

from gsqtok.training import train
from gsqtok.training.logs import checked_trackers


def test_an_unknown_tracker_is_named():
    with pytest.raises(ValueError, match=r"no tracker 'tensorbord'; Accelerate knows .*tensorboard"):
        checked_trackers(("tensorbord",))


def test_a_missing_package_is_named(monkeypatch, tiny):
    monkeypatch.setattr("gsqtok.training.logs.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match="tracker wandb is not installed: pip install wandb"):
        train(tiny(trackers=("tensorboard", "wandb")))


def test_no_tracker_at_all(tiny, metrics):
    run = train(tiny(trackers=(), steps=2))
    assert len(metrics(run)) == 2
    assert not (run / "tensorboard").exists()


def test_a_tracker_without_images(tiny, monkeypatch):
    """One that knows scalars only gets those; the grid is no reason to stop."""
    logged = []

    class Plain(tracking.GeneralTracker):
        name = "trackio"
        requires_logging_directory = False

        def __init__(self, run_name, **options):
            super().__init__()
            assert run_name == "gsqtok"

        def start(self):
            pass

        @property
        def tracker(self):
            return None

        def log(self, values, step=None, **options):
            logged.append((step, values))

    trackio = tracking.LoggerType.TRACKIO
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", Plain)
    monkeypatch.setattr(tracking, "_available_trackers", [*tracking.get_available_trackers(), trackio])
    train(tiny(trackers=("trackio",), steps=2, validate_every=1))
    assert [step for step, values in logged if "loss/total" in values] == [1, 2]


@pytest.mark.slow
def test_wandb_offline(tmp_path, demo_copy):
    pytest.importorskip("wandb")
    environment = processes.ENVIRONMENT | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    environment |= {"WANDB__SERVICE_WAIT": str(processes.PATIENCE), "WANDB_INIT_TIMEOUT": str(processes.PATIENCE)}
    environment |= {f"WANDB_{name}_DIR": str(tmp_path / name) for name in ("CACHE", "CONFIG", "DATA")}
    run = tmp_path / "run"
    arguments = [
        *("train", "smoke", "--data.train", demo_copy, "--output", run, "--trackers", "[tensorboard, wandb]"),
        *("--steps", 2, "--validate_every", 2, "--model.multipliers", "[1, 1]", "--data.size", 16),
    ]
    result = processes.run(arguments, environment)
    assert result.returncode == 0, result.stderr
    (written,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    content = written.read_bytes()
    assert b"loss/total" in content
    assert b"loss/reconstruction" in content
    assert list((run / "wandb").glob("offline-run-*/files/media/images/reconstructions*.png"))
    assert list((run / "tensorboard").glob("events*"))
