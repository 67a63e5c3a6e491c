"""gsqtok recipes: the training recipes that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gsqtok.cli.options import console, print_rows

if TYPE_CHECKING:
    import gsqtok.training.config


def ls() -> None:
    """List the training recipes that come with the package.

    Example:
          gsqtok recipes ls
    """
    from gsqtok.training import recipes

    print_rows([(name, recipes.find(name).read_text().splitlines()[0].lstrip("# ")) for name in recipes.names()])


def show(name: str) -> None:
    """Print a recipe.

    Args:
        name: of a recipe

    Example:
          gsqtok recipes show small
    """
    from gsqtok.training import recipes

    print(recipes.find(name).read_text(), end="")


def copy(name: str, target: str | None) -> None:
    """Copy a recipe to a file that you can edit.

    Args:
        name: of a recipe
        target: the file to write (default: the recipe's name in this folder)

    Example:
          gsqtok recipes copy small my-recipe.yaml
          gsqtok train my-recipe.yaml --data.train images/
    """
    from gsqtok.training import recipes

    file = Path(target or f"{name}.yaml")
    if file.exists():
        raise ValueError(f"{file} exists; choose another name")
    file.write_text(recipes.find(name).read_text())
    console.print(f"{file}: edit it, then gsqtok train {file}")


def validate(recipe: str, config: gsqtok.training.config.TrainConfig, *, resume: bool = False) -> int:
    """Say what a recipe would train, and every problem that it would meet.

    Takes the options of gsqtok train. The exit status is 1 where there are problems.

    Args:
        resume: check the checkpoint that the run would go on from, too

    Example:
          gsqtok recipes validate my-recipe.yaml --data.train images/
    """
    from gsqtok.training import validation

    report = validation.validate(config, resume)
    print_rows(list(report.facts.items()))
    for problem in report.problems:
        console.print(f"problem: {problem}")
    console.print(f"{recipe}: {len(report.problems) or 'no'} problem{'s' if len(report.problems) != 1 else ''}")
    return 1 if report.problems else 0
