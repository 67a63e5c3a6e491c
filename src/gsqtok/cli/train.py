"""gsqtok train."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gsqtok.cli.recipes import lineage

if TYPE_CHECKING:
    from gsqtok.training.config import TrainConfig

EXAMPLE = """examples:
  gsqtok train small --data.train images/ --output runs/mine
  gsqtok train small --data.train images/ --output runs/mine --resume
  gsqtok train my-recipe.yaml --model.quantizer.groups 4 --steps 20000
  torchrun --nproc-per-node 8 -m gsqtok train my-recipe.yaml

RECIPE is a YAML file or the name of one that comes with the package (gsqtok recipes ls); --a.b VALUE overrides it.
The run's folder holds its resolved configuration, checkpoints, curves (tensorboard --logdir runs/mine), sample grids,
metrics.jsonl, and the tokenizer: ImageTokenizer.from_pretrained("runs/mine")."""


def main(argv: list[str]) -> None:
    """Train a tokenizer."""
    config, resume = parse(argv)
    from gsqtok.cli.options import show_warnings
    from gsqtok.training import train

    show_warnings()
    train(config, resume)


def parse(argv: list[str]) -> tuple[TrainConfig, bool]:
    """The configuration and whether to resume, from recipe and options; a wrong one ends with a line that names it."""
    import argparse
    import dataclasses
    from typing import Any

    from jsonargparse import ActionConfigFile, ArgumentParser

    from gsqtok.quantizers import options_type
    from gsqtok.tokenizer import TokenizerConfig
    from gsqtok.training.config import TrainConfig

    recipe = argv[0] if argv and not argv[0].startswith("-") else ""

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> None:
            line = " ".join(str(message).split()).replace("<unicode string>", recipe)
            print(f"gsqtok train: error: {line}; see gsqtok train --help", file=sys.stderr)
            sys.exit(2)

    p = Parser(
        prog="gsqtok train",
        usage="gsqtok train [RECIPE] [--data.train SOURCE] [--output FOLDER] [--resume] [--option VALUE ...]",
        description="Train a tokenizer on images.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--config", action=ActionConfigFile, help="a recipe; the same as naming it first")
    p.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
    p.add_argument("--base", help="in a recipe: another one, which it builds on")
    p.add_class_arguments(TrainConfig, None, skip={"model"})
    p.add_class_arguments(TokenizerConfig, "model", skip={"quantizer"})
    default = dataclasses.asdict(TokenizerConfig().quantizer)
    if "--help" in argv or "-h" in argv:  # shows each option of the default method
        p.add_class_arguments(options_type(default["name"]), "model.quantizer", default=default)
    else:  # only recipe and options together say which method it is, so the configuration checks its options
        p.add_argument("--model.quantizer", type=dict[str, Any], default=default)
    if recipe:
        argv = [*(word for file in lineage(recipe) for word in ("--config", str(file))), *argv[1:]]
    namespace = p.parse_args(argv)
    try:
        instance = p.instantiate(namespace)
        values = {k: v for k, v in vars(instance).items() if k not in ("config", "resume", "base")}
        return TrainConfig(**values), namespace.resume
    except ValueError as error:  # values that the configurations themselves refuse
        p.error(str(error))
