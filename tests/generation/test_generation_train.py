"""Training of a prior: it learns, it goes on exactly where it stopped, and it refuses what cannot be trained on."""

import dataclasses
import json
import os
import signal

import float64
import numpy as np
import processes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gsqtok.cli import main
from gsqtok.generation import train as train_module
from gsqtok.generation.config import PriorConfig, TokenDataConfig
from gsqtok.generation.evaluate import predictability
from gsqtok.generation.prior import Prior, PriorModelConfig
from gsqtok.generation.train import PriorTrainer, hide, initial_prior, token_datasets, train
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig
from gsqtok.tokens import TokenDataset
from gsqtok.tokens import dataset as dataset_module
from gsqtok.tokens.crops import Crops
from gsqtok.tokens.run import RunOptions, tokenize
from gsqtok.training import OptimizerConfig
from gsqtok.training.interruption import InterruptedRunError
from gsqtok.training.run_folder import RunFolderError


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Tokens of random images with classes, by a tiny tokenizer that is beside them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tokens")
    blocks = {"encoder_blocks": 1, "decoder_blocks": 1, "encoder_middle_blocks": 1, "decoder_middle_blocks": 1}
    quantizer = {"name": "gsq", "groups": 2, "codebook_size": 64}
    config = TokenizerConfig(latent_dim=8, channels=32, multipliers=(1, 1, 2), quantizer=quantizer, **blocks)
    tokenizer = ImageTokenizer(config).eval()
    tokenizer.save_pretrained(folder / "tokenizer")
    rows, rng = [], np.random.default_rng(0)
    for i in range(24):
        small = Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8)).resize((16, 16))
        small.save(folder / "image.png")
        rows.append({"image": {"bytes": (folder / "image.png").read_bytes(), "path": f"{i}.png"}, "label": i % 3})
    (folder / "images").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "images" / "train.parquet")
    options = RunOptions(Crops(16), columns=("label",), workers=0)
    tokenize(tokenizer, folder / "images", folder / "tokens", options, model=str(folder / "tokenizer"))
    return folder / "tokens"


@pytest.fixture
def tiny(tokens, tmp_path, monkeypatch):
    monkeypatch.setenv("GSQTOK_CACHE", str(tmp_path / "cache"))

    def config(name="run", label="label", **options):
        data = TokenDataConfig(str(tokens), options.pop("validation", ""), label, workers=0)
        model = PriorModelConfig(width=64, layers=1, head_layers=1, head=options.pop("head", "depth"))
        values = {"steps": 4, "batch_size": 8, "precision": "float32", "log_every": 1, "trackers": ()} | options
        optimizer = OptimizerConfig(learning_rate=3e-3, betas=(0.9, 0.95))
        return PriorConfig(str(tmp_path / name), model, data, optimizer, **values)

    return config


def weights(run):
    return load_file(run / "prior" / "model.safetensors")


@pytest.mark.parametrize("head", ["depth", "masked"])
def test_it_learns(tiny, head, tokens):
    run = train(tiny(head=head, steps=40, ema_decay=0.9, validation=str(tokens)))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["bits_per_token"] for line in lines if "bits_per_token" in line]
    assert len(losses) == 40
    assert sum(losses[-5:]) / 5 < losses[0] - (0.5 if head == "depth" else 0.1)
    measured = [line for line in lines if "validation/bits_per_pixel" in line]
    assert [line["step"] for line in measured] == [40]
    found = predictability(Prior.from_pretrained(run), token_datasets(tiny().data)[0], label="label")
    assert found["bits_per_token"] == pytest.approx(measured[0]["validation/bits_per_token"], abs=1e-4)
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "data.json", "checkpoints", "prior"}


@pytest.mark.parametrize("head", ["depth", "masked"])
def test_a_run_that_was_stopped_goes_on_exactly(tiny, head, monkeypatch):
    whole = train(tiny("whole", head=head, steps=5, loss_share=0.5))
    real, config = PriorTrainer.step, tiny("stopped", head=head, steps=5, loss_share=0.5)

    def step(self, number, batch):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, number, batch)

    with monkeypatch.context() as patched:
        patched.setattr(PriorTrainer, "step", step)
        with pytest.raises(InterruptedRunError, match="after step 3, which is saved"):
            train(config)
    assert torch.load(whole / "checkpoints" / "step-00000005" / "extra.pt")["ema"].keys()
    train(config, resume=True)
    before, after = weights(whole), weights(whole.parent / "stopped")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_classes_are_used_and_hidden(tiny):
    trainer = PriorTrainer(tiny(label_dropout=0.5, batch_size=200))
    assert trainer.prior.vocabulary.classes == 3
    draw = torch.Generator().manual_seed(0)
    labels = trainer.labels({"label": torch.tensor([0, 1, 2, -1] * 50)}, draw).view(50, 4)
    assert (labels[:, 3] == 3).all()
    assert 40 < (labels[:, :3] == 3).sum() < 110
    assert ((labels[:, :3] == 3) | (labels[:, :3] == torch.tensor([0, 1, 2]))).all()
    assert PriorTrainer(tiny("other", label=None)).labels({}, draw) is None


def test_what_is_hidden_follows_the_cosine_schedule():
    draw = torch.Generator().manual_seed(0)
    hidden = hide(torch.zeros(4000, 4, 4, 2), draw).flatten(1)
    assert hidden.any(1).all()
    shares = hidden.double().mean(1)
    assert shares.mean().item() == pytest.approx(2 / torch.pi, abs=0.02)  # the cosine's mean
    assert (shares > 0.9).double().mean().item() == pytest.approx(2 / torch.pi * 0.451, abs=0.06)  # arccos 0.9


def test_bad_data_is_refused(tiny, tokens, tmp_path):
    with pytest.raises(ValueError, match=r"no tokens to train on.*--data.train"):
        train(dataclasses.replace(tiny(), data=TokenDataConfig()))
    with pytest.raises(ValueError, match="has no column 'color'"):
        train(tiny(label="color"))
    with pytest.raises(ValueError, match="does not hold whole numbers"):
        train(tiny(label="key"))
    dataset = TokenDataset(tokens)
    dataset.manifest = dataset.manifest | {"tokenizer": "f" * 64}
    with pytest.raises(ValueError, match="made by the tokenizer"):
        initial_prior(tiny(), dataset)
    train(tiny())
    with pytest.raises(RunFolderError, match="already holds a run"):
        train(tiny())
    with pytest.raises(RunFolderError, match=r"started with batch_size = 8, now 4"):
        train(tiny(batch_size=4), resume=True)


def test_the_command(tiny, tokens, tmp_path, capsys):
    words = [
        "--data.train",
        str(tokens),
        "--data.validation",
        str(tokens),
        "--data.workers",
        "0",
        "--precision",
        "float32",
    ]
    small = [
        "--model.width",
        "64",
        "--model.layers",
        "1",
        "--model.head_layers",
        "1",
        "--steps",
        "2",
        "--batch_size",
        "4",
    ]
    run = str(tmp_path / "run")
    assert main(["prior", "train", "prior-64", *words, *small, "--data.label", "label", "--output", run]) == 0
    result = str(tmp_path / "prior.json")
    assert main(["prior", "evaluate", run, str(tokens), "--label", "label", "-o", result, "--device", "cpu"]) == 0
    values = json.loads((tmp_path / "prior.json").read_text())
    assert values["bits_per_pixel"] == pytest.approx(values["bits_per_position"] / 16)
    assert values["bits_per_position"] == pytest.approx(2 * values["bits_per_token"])
    assert len(values["bits_by_position"]) == 4
    words = ["--samples", "4", "--features", "timm:tf_efficientnet_lite0", "--device", "cpu"]
    assert main(["prior", "evaluate", run, str(tokens), "-o", result, *words]) == 0
    values = json.loads((tmp_path / "prior.json").read_text())
    assert (values["samples"], values["compared_with"]) == (4, "decoded tokens")
    assert values["frechet_distance_tf_efficientnet_lite0"] > 0
    tokenizer, image = str(tokens.parent / "tokenizer"), tmp_path / "samples.png"
    words = ["prior", "sample", run, tokenizer, "-o", str(image), "--number", "4", "--device", "cpu"]
    assert main([*words, "--classes", "0", "2", "--guidance", "1.5"]) == 0
    assert image.stat().st_size
    capsys.readouterr()
    assert main([*words, "--classes", "7"]) == 1
    assert "there is no class 7: this prior knows 0 to 2" in capsys.readouterr().err
    assert main(["prior", "sample", run, "-o", str(image), "--device", "cpu"]) == 1
    assert "the prior is for tokens of the tokenizer" in capsys.readouterr().err


def in_float64():
    """Everything; tokenizers then have another fingerprint, which is not looked at."""
    float64.everywhere()
    for module in (dataset_module, train_module):
        module.require = lambda *_: None


@pytest.mark.slow
@pytest.mark.parametrize(("head", "more"), [("depth", []), ("masked", ["--loss_share", "0.5"])])
def test_two_ranks_equal_one(tokens, tmp_path, monkeypatch, head, more):
    """In float64: losses, gradients (as moments of the optimiser), averaged weights, and what is measured."""
    monkeypatch.setenv("GSQTOK_CACHE", str(tmp_path / "cache"))
    small = ["--model.width", "64", "--model.layers", "1", "--model.head_layers", "1", "--model.head", head]
    options = [*small, *more, "--steps", "3", "--batch_size", "6", "--precision", "float32", "--log_every", "1"]
    options += ["--data.label", "label", "--label_dropout", "0.5", "--save_every", "1", "--keep_checkpoints", "3"]
    options += ["--data.train", str(tokens), "--data.validation", str(tokens), "--trackers", "[]"]
    for count in (1, 2):
        output = str(tmp_path / f"{count}")
        command = ["prior", "train", "prior-64", *options, "--data.workers", "0", "--output", output]
        done = processes.run_ranks(command, in_float64, count)
        assert [rank.returncode for rank in done] == [0] * count, [rank.stderr for rank in done]
        assert f"on {count} x cpu" in "".join(rank.stderr for rank in done)
    one, two = ([json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()] for run in ("1", "2"))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        named = [name for name in a if name != "images_per_second"]
        assert {name: b[name] for name in named} == pytest.approx({name: a[name] for name in named}, rel=1e-7)
    for step in (1, 3):
        folders = [tmp_path / run / "checkpoints" / f"step-{step:08d}" for run in ("1", "2")]
        a, b = (load_file(folder / "model.safetensors") for folder in folders)
        for name, value in a.items():
            torch.testing.assert_close(b[name], value, rtol=1e-7, atol=1e-9, msg=name)
        a, b = (torch.load(folder / "optimizer.bin", weights_only=True)["state"] for folder in folders)
        for number, moments in a.items():
            torch.testing.assert_close(b[number], moments, rtol=1e-6, atol=1e-10)
    a, b = (load_file(tmp_path / run / "prior" / "model.safetensors") for run in ("1", "2"))
    assert all(torch.allclose(b[name], value, rtol=1e-7, atol=1e-9) for name, value in a.items())
