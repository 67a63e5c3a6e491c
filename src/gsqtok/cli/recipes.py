"""gsqtok recipes."""

from __future__ import annotations

import sys
from pathlib import Path

from gsqtok.cli.options import console, parser

FOLDER = Path(__file__).parent.parent / "recipes"


def main(argv: list[str]) -> int | None:
    """List, show, copy or validate recipes."""
    if argv[:1] == ["validate"]:
        return _validate(argv[1:])
    p = parser(
        "recipes",
        "The training recipes that come with the package.",
        "  gsqtok recipes ls\n  gsqtok recipes copy small my-recipe.yaml\n"
        "  gsqtok recipes validate my-recipe.yaml --data.train images/\n  gsqtok train my-recipe.yaml",
    )
    p.add_argument(
        "action",
        choices=("ls", "show", "copy", "validate"),
        help="list them, print one, copy one to edit it, or check that one (yours, too) would train",
    )
    p.add_argument("name", nargs="?", help="which recipe; with validate also a file, and the options of gsqtok train")
    p.add_argument("target", nargs="?", help="with copy: the file to write")
    args = p.parse_args(argv)
    if args.action == "ls":
        for file in sorted(FOLDER.glob("*.yaml")):
            console.print(f"{file.stem:<14} {file.read_text().splitlines()[0].lstrip('# ')}")
        return
    if args.name is None:
        raise ValueError(f"gsqtok recipes {args.action} needs the name of a recipe")
    text = find(args.name).read_text()
    if args.action == "show":
        print(text, end="")
        return
    target = Path(args.target or f"{args.name}.yaml")
    if target.exists():
        raise ValueError(f"{target} exists; choose another name")
    target.write_text(text)
    console.print(f"{target}: edit it, then gsqtok train {target}")


def _validate(argv: list[str]) -> int:
    """Print what a recipe would train and every problem that it would meet; 1 where there are problems."""
    from gsqtok.cli.train import parse

    if not argv or argv[0].startswith("-"):
        print("usage: gsqtok recipes validate RECIPE [--data.train SOURCE] [--option VALUE ...]", file=sys.stderr)
        return 2 if argv[:1] != ["--help"] else 0
    config, resume = parse(argv)
    from gsqtok.training.validation import validate

    report = validate(config, resume)
    width = max(map(len, report.facts))
    for name, fact in report.facts.items():
        console.print(f"{name:<{width}}  {fact}")
    for problem in report.problems:
        console.print(f"problem: {problem}")
    console.print(f"{argv[0]}: {len(report.problems) or 'no'} problem{'s' if len(report.problems) != 1 else ''}")
    return 1 if report.problems else 0


def find(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Raises:
        FileNotFoundError: neither.
    """
    if Path(recipe).is_file():
        return Path(recipe)
    file = FOLDER / f"{recipe}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in FOLDER.glob("*.yaml")))
        raise FileNotFoundError(f"no recipe '{recipe}': neither a file nor one of {known}")
    return file


def lineage(recipe: str) -> list[Path]:
    """The files that make a recipe: the one that all others build on (``base``) first, the recipe itself last.

    Raises:
        FileNotFoundError: the recipe, or a base, is neither a file nor one of the package's.
        ValueError: recipes that build on each other in a circle.
    """
    import yaml

    files = [find(recipe)]
    while True:
        try:
            written = yaml.safe_load(files[0].read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            return files  # whoever reads it next says what is wrong, and where
        if not isinstance(written, dict) or not written.get("base"):
            return files
        base = str(written["base"])
        beside = files[0].parent / base  # a path is meant from the recipe's own folder
        files.insert(0, beside if beside.is_file() else find(base))
        if files[0].resolve() in [file.resolve() for file in files[1:]]:
            raise ValueError(f"{files[1]} builds on itself through base: {base}")
