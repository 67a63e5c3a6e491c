"""What `official` names is as in the paper's own code, and nothing else is."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from gsqtok.cli import main, parser
from gsqtok.cli.train import train as train_command
from gsqtok.data import to_float
from gsqtok.discriminators import OfficialStyleGANDiscriminator, StyleGANDiscriminator
from gsqtok.losses import official
from gsqtok.networks.initialization import initialize_kaiming
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.training import AdversarialConfig, DataConfig, Trainer, recipes, train

PATCH = AdversarialConfig(discriminator="patch", options={"channels": 16, "layers": 1}, augment=("cutout",), lecam=0.1)
ALL = ("losses", "augment", "discriminator", "initialization", "ema")


def described(trainer):
    """Which components of a run are official."""
    network, tokenizer = trainer.adversary.network, trainer.tokenizer
    found = {
        "losses": trainer.adversary.losses is official
        and isinstance(trainer.adversary.objective.lecam, official.LeCam),
        "augment": network.augment.official,
        "discriminator": isinstance(network, OfficialStyleGANDiscriminator),
        "initialization": bool((tokenizer.encoder.conv_in.bias == 0).all()),
        "ema": not trainer.ema.rising,
    }
    assert trainer.objective.official == found["losses"]
    return {name for name, holds in found.items() if holds}


@pytest.mark.parametrize("components", [(), ALL, *((name,) for name in ALL)])
def test_each_component_by_itself(tiny, components):
    stylegan = AdversarialConfig(discriminator="stylegan", options={"channels": 4, "multipliers": (1, 1)}, lecam=0.1)
    trainer = Trainer(tiny(adversarial=stylegan, official=components))
    assert described(trainer) == set(components)
    assert isinstance(trainer.adversary.network, OfficialStyleGANDiscriminator | StyleGANDiscriminator)


def test_the_step_is_what_the_official_losses_say(tiny):
    trainer = Trainer(tiny(adversarial=PATCH, official=("losses",)))
    trainer.adversary.network.augment.policies = ()
    batch = next(trainer.batches())
    images = to_float(batch["image"])
    out = trainer.tokenizer(images)
    maps = [trainer.adversary.network(x) for x in (images, out.reconstruction.detach())]
    terms = trainer.step(1, iter([batch]))
    expected = official.generator_loss(maps[1], "non_saturating")
    assert float(terms["adversarial"]) == pytest.approx(float(expected), rel=1e-5)
    lecam = official.LeCam()(*maps)
    assert float(terms["discriminator/lecam"]) == pytest.approx(float(lecam), rel=1e-5)
    total = official.discriminator_loss(*maps, "hinge")
    assert float(terms["discriminator/loss"]) == pytest.approx(float(total), rel=1e-5)


def test_kaiming():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(64, 96, 3), nn.GroupNorm(32, 96), nn.Conv2d(96, 8, 1, bias=False), nn.Linear(8, 8)
    )
    linear = network[3].weight.clone()
    initialize_kaiming(network)
    assert network[0].weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.02)
    assert network[2].weight.var().item() == pytest.approx(2 / 96, rel=0.2)
    assert not network[0].bias.any()
    assert torch.equal(network[3].weight, linear)
    assert (network[1].weight == 1).all()


def test_patchgan_starts_likewise(tiny):
    first = [
        Trainer(tiny(output=f"{tiny().output}-{i}", adversarial=PATCH, official=c)).adversary.network.layers[0].weight
        for i, c in enumerate([(), ("initialization",)])
    ]
    assert first[0].std().item() == pytest.approx(0.02, rel=0.2)
    assert first[1].std().item() == pytest.approx((2 / 48) ** 0.5, rel=0.2)


def test_center_crops_are_the_same_in_every_epoch(tiny):
    trainer = Trainer(tiny(data={"crop": "center", "flip": False, "max_resize": None}, batch_size=5))
    batches = trainer.batches()
    epochs = [next(batches)["image"] for _ in range(2)]

    def in_order(images):
        return images[images.flatten(1).double().mean(1).argsort()]

    assert torch.equal(*map(in_order, epochs))
    with pytest.raises(ValueError, match="max_resize has no effect"):
        DataConfig(crop="center", max_resize=512)


def test_a_run_resumes(tiny, tmp_path):
    weights = []
    for name, legs in (("whole", (4,)), ("halves", (2, 4))):
        for steps in legs:
            changes = {"output": str(tmp_path / name), "adversarial": PATCH, "official": ALL, "steps": steps}
            run = train(tiny(**changes), resume=True)
        weights.append((run / "tokenizer/model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_unknown_components_are_refused(tiny, capsys):
    with pytest.raises(ValueError, match="official must be a list, each one of losses, augment, discriminator"):
        tiny(official=("loss",))
    assert main(["train", "smoke", "--official", "[loss]", "--data.train", "x"]) != 0
    assert "official" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "base"), [("official-gan-f8-128", "gan-f8-128"), ("official-scale-f8-256", "scale-f8-256")]
)
def test_the_official_recipes_differ_in_nothing_else(recipe, base):
    theirs, ours = recipes.load(recipe), recipes.load(base)
    assert tuple(theirs.pop("official")) == ALL
    assert (theirs["data"].pop("crop"), theirs["data"].pop("flip")) == ("center", False)
    assert theirs == ours


def documented():
    """Options of the paper's table in docs/paper.md: whole commands, and options alone, which go to gan-f8-128."""
    section = (Path(__file__).parents[2] / "docs/paper.md").read_text().split("## The paper's tables and figures")[1]
    code = re.findall(r"`([^`]+)`", section.split("\n## ")[0].split("\n\n", 1)[1])
    commands = [text.removeprefix("gsqtok train ") for text in code if text.startswith("gsqtok train ")]
    options = [f"gan-f8-128 {text}" for text in code if text.startswith(("--adversarial.", "--model.")) and " " in text]
    options = [text for text in options if ".options" not in text and ".r1" not in text]  # which go together
    options.append(
        "gan-f8-128 --adversarial.discriminator patch --adversarial.r1 1 --adversarial.options '{norm: group}'"
    )
    return commands + options


@pytest.mark.parametrize("command", documented())
def test_the_commands_for_the_paper_s_rows_are_understood(command):
    config = parser.parse("train", train_command, shlex.split(command))["config"]
    with torch.device("meta"):
        assert ImageTokenizer(config.model).factor in (8, 16, 32)
