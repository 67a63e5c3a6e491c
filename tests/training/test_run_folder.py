"""Whose folder it is, and checkpoints that a failed write cannot spoil."""

import dataclasses
import errno
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gsqtok.training import Trainer, train
from gsqtok.training.run_folder import RunFolder, RunFolderError, as_plain, flatten


@pytest.fixture
def run(tmp_path, tiny):
    config = tiny(output=str(tmp_path / "mine"))
    folder = RunFolder(config.output)
    folder.write_config(config)
    return folder, config


def checkpoint(folder, step, keep=2, write=lambda path: (path / "weights").write_text("good")):
    folder.save(step, write, lambda report: [report], True, keep)


def names(folder):
    return sorted(file.name for file in folder.checkpoints.iterdir())


def test_refuses_a_file(tmp_path, tiny):
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunFolderError, match="taken is a file"):
        RunFolder(tmp_path / "taken").check(tiny(), resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_refuses_other_files(tmp_path, tiny, resume):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match="other files"):
        RunFolder(tmp_path).check(tiny(), resume)


def test_refuses_another_run(run):
    folder, config = run
    checkpoint(folder, 7)
    with pytest.raises(RunFolderError, match=r"already holds a run.*step 7.*--resume"):
        folder.check(config, resume=False)
    folder.check(config, resume=True)


@pytest.mark.parametrize("make", [True, False])
def test_takes_an_empty_folder_also_to_resume(tmp_path, tiny, make):
    if make:
        (tmp_path / "new").mkdir()
    RunFolder(tmp_path / "new").check(tiny(), resume=True)


def test_resume_refuses_what_changes_the_result(run):
    folder, config = run
    with pytest.raises(RunFolderError, match="seed = 0, now 3"):
        folder.check(dataclasses.replace(config, seed=3), resume=True)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=0.25)
    with pytest.raises(RunFolderError, match=r"optimizer\.learning_rate = 0\.002, now 0\.25"):
        folder.check(dataclasses.replace(config, optimizer=optimizer), resume=True)


def test_resume_takes_more_steps(run):
    folder, config = run
    data = dataclasses.replace(config.data, workers=3, validation="elsewhere")
    folder.check(dataclasses.replace(config, steps=99, save_every=5, data=data), resume=True)


def test_resume_of_a_trainer_goes_on_to_more_steps(tiny, metrics):
    config = tiny(steps=2)
    train(config)
    train(dataclasses.replace(config, steps=4), resume=True)
    assert [line["step"] for line in metrics(config.output)] == [1, 2, 3, 4]
    with pytest.raises(RunFolderError, match="seed"):
        Trainer(dataclasses.replace(config, seed=1), resume=True)


def test_keeps_the_newest(run):
    folder, _ = run
    for step in (8, 9, 10, 100):
        checkpoint(folder, step, keep=3)
    assert names(folder) == ["step-00000009", "step-00000010", "step-00000100"]
    assert folder.latest().name == "step-00000100"


def test_order_is_that_of_numbers(run):
    folder, _ = run
    for step in (99_999_999, 100_000_000):
        checkpoint(folder, step)
    assert folder.latest().name == "step-100000000"


def test_a_full_disk_leaves_the_last_good_checkpoint(run):
    folder, _ = run
    checkpoint(folder, 1)

    def full(path):
        (path / "weights").write_text("ha")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunFolderError, match=r"step 2 .*No space left on device.*step-00000001") as error:
        checkpoint(folder, 2, write=full)
    assert "\n" not in str(error.value)
    assert names(folder) == ["step-00000001"]
    assert (folder.latest() / "weights").read_text() == "good"


def test_a_full_disk_while_the_trainer_saves(tiny, monkeypatch):
    config = tiny(steps=4, save_every=2)
    trainer = Trainer(config)
    real, saved = torch.save, []

    def save(value, target, *arguments, **options):
        if "00000004" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(target)
        return real(value, target, *arguments, **options)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RunFolderError, match=r"step 4 .*No space left on device.*step-00000002"):
        trainer.run()
    assert saved
    assert names(trainer.folder) == ["step-00000002"]
    monkeypatch.undo()
    train(config, resume=True)
    assert names(trainer.folder) == ["step-00000002", "step-00000004"]


def test_a_crash_leaves_nothing_that_counts(run):
    folder, _ = run
    checkpoint(folder, 1)
    shutil.copytree(folder.latest(), folder.checkpoints / ".writing-00000002")  # killed before the renaming
    assert folder.latest().name == "step-00000001"
    checkpoint(folder, 2)
    assert names(folder) == ["step-00000001", "step-00000002"]


def test_a_tokenizer_that_was_being_saved_is_cleared_away(tiny):
    config = tiny(steps=1)
    run = train(config)
    (run / ".tokenizer.killed").mkdir()
    (run / ".tokenizer.killed" / "model.safetensors").write_text("ha")
    train(dataclasses.replace(config, steps=2), resume=True)
    assert not list(run.glob(".tokenizer.*"))
    assert (run / "tokenizer" / "model.safetensors").is_file()


def test_plain_and_flat(tiny):
    flat = flatten(as_plain(tiny()))
    assert flat["model.multipliers"] == [1, 1]
    assert flat["model.quantizer.codebook_size"] == 64
    assert flat["optimizer.betas"] == [0.9, 0.99]


def test_metrics_are_the_lines_of_the_log_in_order(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics_file.write_text('{"step": 1, "loss/total": 0.5}\n{"step": 2}\n')
    assert run.metrics() == [{"step": 1, "loss/total": 0.5}, {"step": 2}]


@pytest.fixture(scope="module")
def two_steps():
    """A run with two checkpoints, made by the first test that wants it; the others copy its folder."""
    return {}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "extra.pt", "usage-0.pt", "sha256.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_damaged_checkpoint_is_left_out(tiny, two_steps, tmp_path_factory, caplog, name, damage):
    """One flipped bit, a cut or a missing file: the run goes on from the checkpoint before, to the same weights."""
    if not two_steps:
        output = str(tmp_path_factory.mktemp("two") / "run")
        two_steps["run"] = train(tiny(output=output, steps=2, save_every=1))
    run = Path(shutil.copytree(two_steps["run"], tiny().output))
    whole = load_file(run / "tokenizer/model.safetensors")
    file = run / "checkpoints/step-00000002" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    with caplog.at_level(logging.WARNING, "gsqtok.training"):
        train(tiny(steps=2, save_every=1), resume=True)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "gsqtok.training"]
    assert "step-00000002 is damaged" in said
    assert name in said or name == "sha256.json"
    again = load_file(run / "tokenizer/model.safetensors")
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_where_every_checkpoint_is_damaged_the_run_says_so(tiny):
    run = train(tiny(steps=2, save_every=1))
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "optimizer.bin").unlink()
    with pytest.raises(RunFolderError, match=r"every checkpoint in .* is damaged"):
        train(tiny(steps=2, save_every=1), resume=True)


def test_other_images_are_noticed(tiny, demo_copy):
    config = tiny(steps=1, train=str(demo_copy))
    train(config)
    longer = dataclasses.replace(config, steps=2)
    (demo_copy / "more.png").write_bytes((demo_copy / "coffee.png").read_bytes())
    with pytest.raises(RunFolderError, match=r"the data of data.train have changed.*--changed-data"):
        train(longer, resume=True)
    train(longer, resume=True, changed_data=True)
    (demo_copy / "more.png").unlink()
    with pytest.raises(RunFolderError, match="have changed"):
        train(dataclasses.replace(config, steps=3), resume=True)
