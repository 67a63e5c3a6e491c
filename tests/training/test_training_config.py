"""What a configuration refuses, and how recipes and options become one."""

import dataclasses

import pytest
import torch

from gsqtok.cli import parser
from gsqtok.cli.train import train
from gsqtok.quantizers import quantizer_options
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig
from gsqtok.training import AdversarialConfig, CropConfig, DataConfig, LossConfig, OptimizerConfig, TrainConfig, recipes

RECIPES = [name for name in recipes.names() if not name.startswith("prior-")]  # which train no tokenizer
COUNTS = ("steps", "batch_size", "gradient_accumulation", "log_every", "validate_every", "save_every")


@pytest.mark.parametrize(
    ("values", "named"),
    [({name: 0}, name) for name in (*COUNTS, "keep_checkpoints")]
    + [({"batch_size": 6, "gradient_accumulation": 4}, "gradient_accumulation 4")]
    + [({"freeze": "encoder"}, "initialize_from")]
    + [({"ema_decay": value}, "ema_decay") for value in (1.0, -0.1, float("nan"))],
)
def test_names_what_is_wrong(values, named):
    with pytest.raises(ValueError) as error:
        TrainConfig(**values)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        (
            OptimizerConfig,
            {"learning_rate": float("nan")},
            "optimizer.learning_rate must be a finite number of at least 0",
        ),
        (OptimizerConfig, {"betas": (0.9, 1.0)}, "optimizer.betas must be a list of 2, each a finite number from 0 to"),
        (OptimizerConfig, {"clip": 0}, "optimizer.clip must be a finite number above 0"),
        (OptimizerConfig, {"schedule": "step"}, "optimizer.schedule must be one of constant, cosine, linear"),
        (DataConfig, {"size": 64.5}, "data.size must be a whole number of at least 1"),
        (DataConfig, {"crops": (CropConfig(96, 1),)}, "data.crops: 96 does not divide data.size 256, so a step"),
        (
            DataConfig,
            {"crops": (CropConfig(64, 1),), "max_resize": 300},
            "data.crops takes the place of data.max_resize",
        ),
        (DataConfig, {"crops": (CropConfig(64, 1),), "streaming": True}, "data.crops reads images in any order"),
        (DataConfig, {"cache": "decoded", "streaming": True}, "data.cache reads images in any order"),
        (CropConfig, {"size": 64, "share": 0}, "data.crops: share must be a finite number above 0"),
        (
            CropConfig,
            {"size": 64, "share": 1, "scales": (0.5,)},
            "data.crops: scales must be a list, each a finite number",
        ),
        (CropConfig, {"size": 64, "share": 1, "scales": ()}, "data.crops: scales are empty"),
        (DataConfig, {"train": 3}, "data.train must be text or a list, each text"),
        (LossConfig, {"quantizer_weight": float("inf")}, "loss.quantizer_weight must be a finite number of at least 0"),
        (AdversarialConfig, {"r1_every": 0}, "adversarial.r1_every must be a whole number of at least 1"),
        (TrainConfig, {"data": None}, "data must be DataConfig, got None"),
    ],
)
def test_every_section_checks_its_values(kind, values, named):
    with pytest.raises(ValueError) as error:
        kind(**values)
    assert str(error.value).startswith(named)


def parse(argv):
    """The configuration, and whether to resume."""
    parsed = parser.parse("train", train, argv)
    return parsed["config"], parsed["resume"]


def undrawn(config):
    """A tokenizer without weights, whose drawing takes seconds."""
    with torch.device("meta"):
        return ImageTokenizer(config)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_builds_its_tokenizer(recipe):
    config, resume = parse([recipe, "--data.train", "images"])
    assert not resume
    written = recipes.load(recipe)
    assert config.steps == written["steps"]
    assert config.optimizer.learning_rate == written["optimizer"]["learning_rate"]
    assert ("model" in written) != (config.initialize_from is not None)
    if "model" in written:
        assert config.model == TokenizerConfig.from_dict(written["model"])
        tokenizer = undrawn(config.model)
        assert tokenizer.quantizer.name == written["model"]["quantizer"]["name"]
        levels = len(written["model"]["multipliers"]) - (written["model"].get("network") != "compact")
        assert tokenizer.factor == 2**levels
    first, launch = recipes.find(recipe).read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert f"gsqtok train {recipe} --data.train " in launch
    assert len(first) <= 122


@pytest.mark.parametrize(("recipe", "bits"), [("vae-f8-128", 13 / 64), ("scale-f8-256", 3.25), ("scale-f16-256", 0.14)])
def test_bits_per_pixel_are_the_paper_s(recipe, bits):
    assert undrawn(parse([recipe])[0].model).bits_per_pixel == pytest.approx(bits, rel=0.01)


def test_the_paper_s_gan_stages():
    stage, scaling = parse(["gan-f8-128"])[0], parse(["scale-f32-256"])[0]
    assert (stage.steps, stage.batch_size, stage.data.size) == (80_000, 256, 128)
    assert (scaling.steps, scaling.batch_size, scaling.data.size) == (50_000, 512, 256)
    for config, rate in ((stage, 1e-4), (scaling, 2e-4)):
        for optimizer in (config.optimizer, config.adversarial.optimizer):
            assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (rate, (0.9, 0.99), 0.05)
        assert (config.adversarial.generator_loss, config.adversarial.discriminator_loss) == ("non_saturating", "hinge")
        assert config.adversarial.augment == ("color", "translation", "cutout")
        assert config.adversarial.weight == 0.1
        assert (config.model.adaptive_norm, config.model.depth_to_space) == (config is scaling,) * 2


def test_a_recipe_may_build_on_another(tmp_path):
    (tmp_path / "one.yaml").write_text("base: smoke\nsteps: 7\nmodel: {channels: 64}\n")
    (tmp_path / "two.yaml").write_text("base: one.yaml\nbatch_size: 4\n")
    config, _ = parse([str(tmp_path / "two.yaml"), "--seed", "3"])
    smoke, _ = parse(["smoke"])
    model = dataclasses.replace(smoke.model, channels=64)
    assert config == dataclasses.replace(smoke, steps=7, batch_size=4, seed=3, model=model)


def test_options_override_the_recipe(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("steps: 70\nmodel: {channels: 64, quantizer: {name: gsq, groups: 4, codebook_size: 32}}\n")
    options = ["--model.channels", "32", "--data.train", "a", "--optimizer.betas", "[0.5, 0.7]", "--resume"]
    config, resume = parse([str(recipe), *options])
    assert resume
    assert (config.steps, config.model.channels, config.data.train) == (70, 32, "a")
    assert config.optimizer.betas == (0.5, 0.7)
    assert config.model.quantizer == quantizer_options("gsq", groups=4, codebook_size=32)
    assert config.batch_size == TrainConfig().batch_size


def test_quantizer_options(tmp_path):
    config, _ = parse(["smoke", "--model.quantizer", "{name: fsq, levels: [8, 8]}"])
    assert config.model.quantizer == quantizer_options("fsq", levels=[8, 8])
    config, _ = parse(["smoke", "--model.quantizer.groups", "4"])
    assert config.model.quantizer == quantizer_options("gsq", groups=4, codebook_size=256)
    config, _ = parse(["smoke", "--model.quantizer.codebook-size=64"])
    assert config.model.quantizer.codebook_size == 64


def test_help_shows_the_options_of_the_quantizer(capsys):
    with pytest.raises(SystemExit):
        parse(["smoke", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "number of groups G; each position gets G tokens. (default: 8)" in said
    assert "--model.quantizer.output {raw,normalized}" in said


def test_several_sources():
    config, _ = parse(["smoke", "--data.train", "[a, b]"])
    assert config.data.train == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["smoke", "--optimizer.learningrate", "1"], "learningrate"),
        (["smoke", "--stepz", "1"], "stepz"),
        (["smoke", "--steps", "many"], "steps"),
        (["smoke", "--precision", "fp8"], "precision"),
        (["smoke", "--model.channels", "1.5"], "channels"),
        (["smoke", "--steps", "0"], "steps"),
        (["smoke", "--adversarial.discriminator", "patchy"], "discriminator"),
        (["smoke", "--adversarial.optimizer.rate", "1"], "rate"),
        (["smoke", "--adversarial.weight", "-1"], "weight"),
        (["smoke", "--model.channels", "33"], "channels"),
        (["smoke", "--model.quantizer.group", "2"], "did you mean 'groups'?"),
        (["smoke", "--model.quantizer.groups", "2.5"], "groups must be a whole number of at least 1, got 2.5"),
        (["smoke", "--model.quantizer.name", "gvq"], "unknown quantizer 'gvq'"),
    ],
)
def test_a_wrong_option_ends_with_a_line_that_names_it(arguments, named, capsys):
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert named in lines[0]


def test_an_unknown_recipe_is_named(gsqtok_command):
    result = gsqtok_command("train", "smokes")
    assert result.returncode == 1
    assert "no recipe 'smokes'" in result.stderr
    assert "did you mean 'smoke'?" in result.stderr
