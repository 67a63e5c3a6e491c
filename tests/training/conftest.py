import dataclasses
import json
import shutil
from pathlib import Path

import float64
import processes
import pytest
import torch
from PIL import Image

import gsqtok
from gsqtok.tokenizer import TokenizerConfig
from gsqtok.training import DataConfig, LossConfig, OptimizerConfig, TrainConfig

PACKAGE = Path(gsqtok.__file__).parent
DEMO = PACKAGE / "demo_images"


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory):
    """The demo images at an eighth of their sides: decoding them took a fifth of a small run."""
    folder = tmp_path_factory.mktemp("demo")
    for file in DEMO.glob("*.png"):
        image = Image.open(file)
        image.thumbnail((64, 64))
        image.save(folder / file.name)
    return folder


@pytest.fixture
def tiny(tmp_path, small_demo):
    """A run of a few steps, like the smoke recipe but smaller; dotted keys replace what they name."""

    def make(**changes):
        model = TokenizerConfig(
            latent_dim=8,
            channels=32,
            multipliers=(1, 1),
            encoder_blocks=1,
            decoder_blocks=1,
            encoder_middle_blocks=0,
            decoder_middle_blocks=0,
            quantizer=changes.pop("quantizer", {"name": "gsq", "groups": 2, "codebook_size": 64}),
        )
        data = DataConfig(train=changes.pop("train", str(small_demo)), size=16, max_resize=24, workers=0)
        data = dataclasses.replace(data, **changes.pop("data", {}))
        optimizer = OptimizerConfig(**{"learning_rate": 2e-3} | changes.pop("optimizer", {}))
        defaults = {"output": str(tmp_path / "run"), "steps": 6, "batch_size": 4, "precision": "float32"}
        every = {"log_every": 1, "validate_every": 1000, "save_every": 1000}
        loss = LossConfig(perceptual_weight=0)
        return TrainConfig(model=model, data=data, optimizer=optimizer, loss=loss, **defaults | every | changes)

    return make


@pytest.fixture
def double_precision(monkeypatch):
    """Everything in float64; see the module."""
    float64.everywhere(monkeypatch.setattr)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def metrics():
    """The lines of metrics.jsonl that hold losses, in order."""

    def read(run):
        lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if "loss/total" in line]

    return read


@pytest.fixture
def gsqtok_command():
    """``gsqtok`` in a process of its own, to its end."""
    return lambda *arguments: processes.run(arguments)


@pytest.fixture
def demo_copy(tmp_path, small_demo):
    return Path(shutil.copytree(small_demo, tmp_path / "images"))
