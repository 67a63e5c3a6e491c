"""The recipes of priors that come with the package."""

import pytest
import torch

from gsqtok.cli.parser import parse
from gsqtok.cli.prior import train
from gsqtok.generation.prior import Prior, Vocabulary
from gsqtok.training import recipes

NAMES = [name for name in recipes.names() if name.startswith("prior-")]


def test_there_are_some():
    assert {"prior-64", "prior-256"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_the_yardstick_of_ten_million_parameters(name):
    config = parse("prior train", train, [name, "--data.train", "tokens"])["config"]
    with torch.device("meta"):
        prior = Prior(config.model, Vocabulary("a", 4, 65_536, (32, 32)), torch.zeros(1, 65_536, 7))
    assert sum(p.numel() for p in prior.parameters()) == pytest.approx(10e6, rel=0.05)
    first, launch = recipes.find(name).read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert len(first) <= 122
    assert f"gsqtok prior train {name} --data.train " in launch


def test_a_wrong_option_is_named(capsys):
    with pytest.raises(SystemExit):
        parse("prior train", train, ["prior-64", "--model.widht", "64"])
    assert "did you mean '--model.width'" in capsys.readouterr().err
