"""What a recipe would train, counted before it starts, and everything that would stop it."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gsqtok.cli import main
from gsqtok.cli.parser import parse
from gsqtok.cli.train import train as train_command
from gsqtok.discriminators import build_discriminator
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.training import LossConfig, recipes, validation
from gsqtok.training.adversarial import DiscriminatorObjective
from gsqtok.training.validation import _activation_bytes, _state_bytes, validate

RECIPES = [name for name in recipes.names() if not name.startswith("prior-")]


COUNTED = ("smoke", "smoke-gan", "gan-f8-128")  # whose steps are gone through; the others have the same layers


@pytest.fixture
def _undrawn(monkeypatch):
    """Networks whose weights are what their memory held: nothing is computed with them, and drawing takes seconds."""
    for name in ("uniform_", "normal_"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, *_, **__: self)


@pytest.mark.usefixtures("_undrawn")
@pytest.mark.parametrize("recipe", [pytest.param(r, marks=pytest.mark.slow) if "-" in r else r for r in RECIPES])
def test_every_recipe_is_valid(recipe, demo_copy, tmp_path, monkeypatch):
    a_image = [] if recipe in COUNTED else [2**20]

    def count(config, batch, *networks):  # at the first batch alone: the second takes as long
        if not a_image:
            a_image.append(_activation_bytes(config, batch, *networks) // batch)
        return batch * a_image[0]

    monkeypatch.setattr(validation, "_activation_bytes", count)
    words = [recipe, "--data.train", str(demo_copy), "--output", str(tmp_path / "run")]
    config = parse("train", train_command, words)["config"]
    report = validate(config)
    # weights that this machine may lack are the one thing that a recipe cannot bring along
    assert all("weights for" in problem or "weights of" in problem for problem in report.problems), report.problems
    assert {"images", "tokens", "tokenizer", "batch", "GPU memory"} <= set(report.facts)
    assert ("discriminator" in report.facts) == (config.adversarial.discriminator != "none")
    start = config.initialize_from
    tokenizer = ImageTokenizer.from_pretrained(start) if start else ImageTokenizer(config.model)
    assert f"{tokenizer.bits_per_pixel:.4g} bits/px" in report.facts["tokens"]


def test_every_problem_is_listed(tiny, tmp_path):
    output = tmp_path / "taken"
    output.mkdir()
    (output / "thesis.tex").write_text("")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    config = tiny(output=str(output), train=str(broken), data={"validation": str(tmp_path / "nowhere")})
    config = dataclasses.replace(
        config,
        trackers=("nosuch",),
        loss=LossConfig(perceptual="timm:tf_efficientnet_lite0", perceptual_file=str(tmp_path / "no.pth")),
        adversarial=dataclasses.replace(config.adversarial, discriminator="patch", options={"layers": 5}),
    )
    problems = validate(config).problems
    named = ("nosuch", "other files", "data.train", "data.validation", "no.pth", "96 pixels")
    assert len(problems) == len(named), problems
    for name in named:
        assert any(name in problem for problem in problems), name
    assert not any("\n" in problem for problem in problems)


def test_ranks_must_divide_the_batch(tiny, monkeypatch):
    assert not validate(tiny(batch_size=6)).problems
    monkeypatch.setenv("WORLD_SIZE", "4")
    (problem,) = validate(tiny(batch_size=6)).problems
    assert "6 is no multiple of gradient_accumulation 1 times 4 ranks" in problem


def test_memory_of_the_weights_is_exact(tiny):
    tokenizer = ImageTokenizer(tiny().model)
    parameters = sum(p.numel() for p in tokenizer.parameters())
    buffers = sum(b.numel() * b.element_size() for b in tokenizer.buffers())
    assert _state_bytes(tokenizer, average=True) == parameters * 4 * 5 + 2 * buffers  # weight, gradient, m, v, average
    for p in tokenizer.encoder.parameters():
        p.requires_grad_(False)
    trained = sum(p.numel() for p in tokenizer.parameters() if p.requires_grad)
    assert _state_bytes(tokenizer, average=True) == parameters * 4 * 2 + trained * 4 * 3 + 2 * buffers


def test_the_memory_of_ibq_is_named(tiny):
    config = tiny()
    model = dataclasses.replace(config.model, quantizer={"name": "ibq", "groups": 2, "codebook_size": 2**18})
    tokenizer = ImageTokenizer(model)
    latents = 2 * config.batch_size * (config.data.size // tokenizer.factor) ** 2
    named = f"{tokenizer.quantizer.working_memory(latents) / 2**30:.2f} GiB for ibq's softmax"
    assert named in validate(dataclasses.replace(config, model=model)).facts["GPU memory"]
    assert "softmax" not in validate(config).facts["GPU memory"]


@pytest.mark.parametrize("discriminator", ["none", "patch"])
def test_activations_counted_without_arithmetic_are_those_of_a_real_step(tiny, discriminator):
    config = tiny()
    options = {} if discriminator == "none" else {"layers": 1, "norm": "group"}
    adversarial = dataclasses.replace(config.adversarial, discriminator=discriminator, options=options)
    config = dataclasses.replace(config, adversarial=adversarial)
    networks = [ImageTokenizer(config.model), None]
    networks.append(None if discriminator == "none" else DiscriminatorObjective(adversarial))
    with FakeTensorMode(allow_non_fake_inputs=True):
        counted = [_activation_bytes(config, batch, *networks) for batch in (2, 4)]
    real = [_activation_bytes(config, batch, *networks) for batch in (2, 4)]
    assert counted[1] - counted[0] == pytest.approx(real[1] - real[0], rel=0.02)
    assert real[0] > 0


def test_the_command_line(demo_copy, tmp_path, capsys):
    arguments = ["recipes", "validate", "smoke-gan", "--output", str(tmp_path / "run")]
    assert main([*arguments, "--data.train", str(demo_copy)]) == 0
    out = capsys.readouterr().out
    assert "smoke-gan: no problems" in out
    discriminator = build_discriminator("patch", channels=16, layers=2, norm="group")
    assert f"{sum(p.numel() for p in discriminator.parameters()) / 1e6:.2f}M trained parameters" in out
    assert main([*arguments, "--data.train", str(tmp_path / "nowhere")]) == 1
    out = capsys.readouterr().out
    assert "problem: data.train: " in out
    assert "1 problem" in out
    assert not (tmp_path / "run").exists()
    assert main(arguments) == 0  # without data, the rest
    assert "not checked" in capsys.readouterr().out
