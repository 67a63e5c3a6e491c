"""The training loop: it learns, writes what it promises, and the same batch gives the same step however it is cut."""

import dataclasses
import json
import logging
import math
import re
import shlex
import textwrap

import filelock
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from PIL import Image, ImageChops
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gsqtok.cli import main
from gsqtok.cli.parser import parse
from gsqtok.cli.train import train as train_command
from gsqtok.data import ImageTransform, open_source
from gsqtok.evaluation import evaluate
from gsqtok.evaluation.usage import _say_not_counted
from gsqtok.quantizers import quantizer_options
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.training import OptimizerConfig, Trainer, train
from gsqtok.training.optimizer import learning_rate


def test_learns(tiny, metrics):
    run = train(tiny(steps=30, batch_size=8))
    losses = [line["loss/reconstruction"] for line in metrics(run)]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])


def test_the_run_folder(tiny, metrics):
    config = tiny(steps=6, save_every=2, validate_every=3, data={"validation": tiny().data.train})
    run = train(config)
    assert {file.name for file in run.iterdir()} == {
        *("config.yaml", "data.json", "checkpoints", "tokenizer", "samples", "metrics.jsonl", "tensorboard"),
        ".rank-0.lock",
    }
    assert sorted(file.name for file in (run / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]

    again = parse("train", train_command, [str(run / "config.yaml")])["config"]
    assert again == dataclasses.replace(config, model=ImageTokenizer(config.model).config)

    samples = [f"step-{step:08d}.png" for step in (0, 3, 6)]
    assert sorted(file.name for file in (run / "samples").iterdir()) == samples
    grids = [Image.open(run / "samples" / name) for name in samples]
    # five demo images above their reconstructions, of 16 pixels, each of which is shown as 8 x 8
    assert {grid.size for grid in grids} == {(5 * (128 + 2) + 2, 2 * (128 + 2) + 2)}
    above, below = (0, 0, grids[0].width, 130), (0, 130, grids[0].width, 262)
    assert ImageChops.difference(*(grid.crop(above) for grid in grids[::2])).getbbox() is None
    assert ImageChops.difference(*(grid.crop(below) for grid in grids[::2])).getbbox() is not None

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = metrics(run)
    assert [line["step"] for line in losses] == [1, 2, 3, 4, 5, 6]
    assert all(line["loss/gradient_norm_max"] >= line["loss/gradient_norm"] * (1 - 1e-6) for line in losses)
    assert all(math.isfinite(line["loss/gradient_norm"]) and line["learning_rate"] == 2e-3 for line in losses)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    curve = events.Scalars("loss/total")
    assert [event.step for event in curve] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in curve] == pytest.approx([line["loss/total"] for line in losses])
    assert [event.step for event in events.Images("reconstructions")] == [0, 3, 6]

    tokenizer = ImageTokenizer.from_pretrained(run)
    assert tokenizer.config == again.model
    figures = evaluate(tokenizer, open_source(config.data.train), transform=ImageTransform(config.data.size))
    last = [line for line in lines if "validation/psnr" in line][-1]
    assert last["step"] == 6
    for name in ("psnr", "ssim", "usage", "perplexity", "bits_per_pixel"):
        assert last[f"validation/{name}"] == pytest.approx(figures[name], rel=1e-6)


def test_codebook_usage_is_logged_once_an_epoch(tiny):
    config = tiny(steps=4, log_every=2)
    run = train(config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    usage = [line for line in lines if "codebook/usage" in line]
    assert [line["step"] for line in usage] == [2, 4]
    assert all(0 < line["codebook/usage"] <= 1 and 1 <= line["codebook/perplexity"] <= 64 for line in usage)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("parts", "quantizer"), [(4, {"name": "gsq"}), (2, {"name": "ema_vq", "revive_after": 0})])
def test_gradient_accumulation(tiny, tmp_path, parts, quantizer):
    """Parts take the step of the whole batch; a codebook that follows the latents moves once in it."""
    weights, losses = [], []
    for accumulation in (1, parts):
        config = tiny(
            output=str(tmp_path / f"{accumulation}"),
            gradient_accumulation=accumulation,
            quantizer=quantizer | {"groups": 2, "codebook_size": 64},
        )
        trainer = Trainer(config)
        batches = trainer.batches()
        losses.append([float(trainer.step(step, batches)["total"]) for step in (1, 2, 3)])
        weights.append(trainer.tokenizer.state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    torch.testing.assert_close(*weights, rtol=1e-7, atol=1e-7)  # Adam makes more of gradients that are all rounding


def test_a_broken_image_is_logged_and_training_goes_on(tiny, demo_copy, caplog, metrics, capfd):
    (demo_copy / "broken.png").write_bytes((demo_copy / "coffee.png").read_bytes()[:500])
    with caplog.at_level(logging.WARNING, "gsqtok"):
        run = train(tiny(train=str(demo_copy), steps=6))
    assert len(metrics(run)) == 6
    assert any("broken.png" in record.getMessage() for record in caplog.records)
    assert "1 " in capfd.readouterr().err.split("done:")[1]


def test_no_readable_image(tiny, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="can be read"):
        Trainer(tiny(train=str(folder)))


def test_no_source(tiny):
    with pytest.raises(ValueError, match=r"--data\.train"):
        Trainer(tiny(train=""))


def test_bf16_on_a_cpu(tiny, metrics):
    train(tiny(steps=1, output=f"{tiny().output}-fp32"))  # one process may train in both
    run = train(tiny(steps=3, precision="bfloat16"))
    assert all(math.isfinite(line["loss/total"]) for line in metrics(run))
    assert {v.dtype for v in load_file(run / "tokenizer/model.safetensors").values() if v.is_floating_point()} == {
        torch.float32
    }


@pytest.mark.parametrize(
    "quantizer",
    [
        {"name": "fsq", "levels": [8, 8, 8, 5, 5, 5, 3, 3]},
        {"name": "lfq", "groups": 2},
        {"name": "ema_vq", "groups": 2, "codebook_size": 32},
    ],
    ids=lambda quantizer: quantizer["name"],
)
def test_other_quantizers(tiny, metrics, quantizer):
    written = ", ".join(f"{key}: {value}" for key, value in quantizer.items())
    config = tiny()
    parsed = parse("train", train_command, ["smoke", "--model.quantizer", f"{{{written}}}"])["config"]
    assert parsed.model.quantizer == quantizer_options(**quantizer)
    run = train(dataclasses.replace(config, model=dataclasses.replace(config.model, quantizer=quantizer), steps=3))
    assert all(math.isfinite(line["loss/total"]) and line["skipped_steps"] == 0 for line in metrics(run))
    assert ImageTokenizer.from_pretrained(run).quantizer.name == quantizer["name"]


def test_a_codebook_too_large_to_count(tiny, caplog):
    _say_not_counted.cache_clear()
    with caplog.at_level(logging.WARNING, "gsqtok.evaluation"):
        config = tiny(steps=4, quantizer={"name": "identity"}, validate_every=2, save_every=2)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, validation=config.data.train))
        run = train(config)
        train(dataclasses.replace(config, steps=5), resume=True)
    assert [record.getMessage() for record in caplog.records if "usage" in record.getMessage()] == [
        "codebook usage and perplexity are left out: the 4294967296 codewords of identity are more than the 16777216 "
        "that are counted"
    ]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation/psnr" in line] == [2, 4, 5]
    assert not any("usage" in name for line in lines for name in line)


def test_learning_rate():
    constant = OptimizerConfig(learning_rate=2.0, warmup_steps=4)
    assert [learning_rate(constant, step, 10) for step in (1, 2, 4, 5, 10)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    cosine = OptimizerConfig(learning_rate=2.0, warmup_steps=4, schedule="cosine")
    assert [learning_rate(cosine, step, 12) for step in (2, 4, 8, 12)] == pytest.approx([1.0, 2.0, 1.0, 0.0])
    assert learning_rate(cosine, 6, 12) == pytest.approx(1 + math.cos(math.pi / 4))
    linear = OptimizerConfig(learning_rate=2.0, warmup_steps=4, schedule="linear")
    assert [learning_rate(linear, step, 12) for step in (2, 4, 6, 8, 12)] == [1.0, 2.0, 1.5, 1.0, 0.0]
    assert learning_rate(OptimizerConfig(learning_rate=2.0), 1, 10) == 2.0


def test_learning_rate_reaches_the_optimizer(tiny):
    trainer = Trainer(tiny(optimizer={"warmup_steps": 4}))
    batches = trainer.batches()
    for step in (1, 2):
        trainer.step(step, batches)
        assert [group["lr"] for group in trainer.optimizer.param_groups] == [2e-3 * step / 4]


def test_sharding_by_accelerate_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match=r"FSDP is not supported.*gradient_accumulation"):
        Trainer(tiny())


def test_a_second_run_in_the_same_folder_is_refused(tiny):
    config = tiny(steps=2)
    folder = train(config)
    before = (folder / "config.yaml").stat()
    refused = pytest.raises(ValueError, match="is being written by another gsqtok train: wait for it")
    with filelock.FileLock(folder / ".rank-0.lock"), refused:
        train(dataclasses.replace(config, log_every=2), resume=True)
    assert (folder / "config.yaml").stat() == before  # the other run's folder was not touched
    assert train(dataclasses.replace(config, log_every=2), resume=True) == folder


def test_a_start_that_failed_leaves_the_folder_free(tiny):
    config = tiny(steps=1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(dataclasses.replace(config, data=dataclasses.replace(config.data, train="nowhere")))
    train(config)


def test_images_are_checked_before_weights_are_looked_for(tiny):
    with pytest.raises(FileNotFoundError, match="no file or folder 'nowhere'"):
        train(tiny(train="nowhere", initialize_from="no/such-tokenizer"))


def test_what_it_says_leads_on(tiny, tmp_path, capfd, demo_copy):
    """What a run prints where there is no terminal: how far it is, what is not measured, and commands that run."""
    run = train(tiny(steps=2, output=str(tmp_path / "a run")))
    said = capfd.readouterr().err
    assert "no validation images" in said
    assert re.search(r"step 1/2  total .* 0:00:\d\d gone, 0:00:\d\d left\n", said)
    following = said.split("next:\n")[1]
    command = shlex.split(following.splitlines()[0], comments=True)
    assert command[:3] == ["gsqtok", "evaluate", str(run)]
    assert main([*command[1:], "--features", "none"]) == 0
    scope = {}
    (demo_copy / "coffee.png").rename(tmp_path / "image.jpg")
    lines = textwrap.dedent(following.split("in Python:\n")[1].split("training ")[0])
    exec(lines.replace("image.jpg", str(tmp_path / "image.jpg")), scope)
    assert scope["tokens"].shape[1:3] == tuple(-(-side // 2) for side in Image.open(tmp_path / "image.jpg").size[::-1])

    train(tiny(steps=1, output=str(tmp_path / "b"), data={"validation": str(demo_copy)}))
    said = capfd.readouterr().err
    assert "no validation images" not in said
    assert f"gsqtok evaluate {tmp_path / 'b'} {demo_copy} --size 16 --crop center\n" in said
