"""gsqtok recipes."""

from __future__ import annotations

from pathlib import Path

from gsqtok.cli.options import console, parser

FOLDER = Path(__file__).parent.parent / "recipes"


def main(argv: list[str]) -> None:
    """List, show or copy the recipes that come with the package."""
    p = parser(
        "recipes",
        "The training recipes that come with the package.",
        "  gsqtok recipes ls\n  gsqtok recipes copy small my-recipe.yaml\n  gsqtok train my-recipe.yaml",
    )
    p.add_argument("action", choices=("ls", "show", "copy"), help="list them, print one, or copy one to edit it")
    p.add_argument("name", nargs="?", help="which recipe")
    p.add_argument("target", nargs="?", help="with copy: the file to write")
    args = p.parse_args(argv)
    if args.action == "ls":
        for file in sorted(FOLDER.glob("*.yaml")):
            console.print(f"{file.stem:<10} {file.read_text().splitlines()[0].lstrip('# ')}")
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
