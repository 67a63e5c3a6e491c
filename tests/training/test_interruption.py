"""A run that is asked to stop saves first, and goes on with the bits of one that nobody disturbed."""

import os
import signal

import processes
import pytest
import torch
from safetensors.torch import load_file

from gsqtok.data.workers import STOP_SIGNALS
from gsqtok.training import Trainer, train
from gsqtok.training import interruption as module
from gsqtok.training.interruption import ECHO_SECONDS, InterruptedRunError, Interruption


def signalled(monkeypatch, name, at):
    """Send this process a signal in the middle of a step."""
    real = Trainer.step

    def step(self, number, batches):
        if number == at:
            os.kill(os.getpid(), getattr(signal, name))
        return real(self, number, batches)

    monkeypatch.setattr(Trainer, "step", step)


@pytest.mark.parametrize("name", STOP_SIGNALS)
def test_a_signal_saves_and_the_run_goes_on_as_if_there_had_been_none(tiny, monkeypatch, name):
    whole = train(tiny(output=f"{tiny().output}-whole"))
    with monkeypatch.context() as patch:
        signalled(patch, name, at=3)
        with pytest.raises(InterruptedRunError, match=rf"stopped by {name} after step 3.*--resume") as stopped:
            train(tiny())
    assert stopped.value.exit_status == 75
    run = train(tiny(), resume=True)
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step-00000003", "step-00000006"]
    for file in ("tokenizer/model.safetensors", "checkpoints/step-00000006/model.safetensors"):
        one, other = load_file(whole / file), load_file(run / file)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_last_step_is_no_reason_to_stop(tiny, monkeypatch):
    signalled(monkeypatch, "SIGTERM", at=6)
    assert (train(tiny()) / "checkpoints/step-00000006").is_dir()


def test_a_second_signal_ends_at_once_unless_it_is_the_first_passed_on(monkeypatch):
    set_before = signal.signal(signal.SIGINT, signal.default_int_handler)  # other tests may have left theirs
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += ECHO_SECONDS / 2
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.name == "SIGINT"
        now[0] += ECHO_SECONDS
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) != interruption._note
    signal.signal(signal.SIGINT, set_before)


def terminate_the_second_rank():
    """A signal that only one of two ranks gets."""
    real = Trainer.step

    def step(self, number, batches):
        if number == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, number, batches)

    Trainer.step = step


@pytest.mark.slow
def test_ranks_stop_together_and_the_command_has_a_status_of_its_own(demo_copy, tmp_path):
    command = ["train", "smoke", "--data.train", demo_copy, "--output", tmp_path / "run", "--steps", "30"]
    command += ["--data.size", "16", "--model.multipliers", "[1, 1]", "--batch_size", "2"]
    first, second = processes.run_ranks(command, terminate_the_second_rank)
    assert (first.returncode, second.returncode) == (75, 75), first.stderr + second.stderr
    assert "after step 10" in first.stderr
    assert "gsqtok train: stopped by SIGTERM" in second.stderr
    assert "error" not in second.stderr.lower()
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000010"]
