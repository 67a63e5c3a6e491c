"""Recipes: YAML files that hold the configuration of a training run; some come with the package."""

from __future__ import annotations

import os
import re
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from gsqtok.io import one_line
from gsqtok.options import near

FOLDER = Path(__file__).parent.parent / "recipes"


class _Loader(yaml.SafeLoader):
    """YAML without what surprises: no alias, no key twice, and a number is one that JSON has (YAML 1.2)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines of them can stand for gigabytes
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is no text", key.start_mark)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{name}' is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _refuse(loader: _Loader, node: yaml.ScalarNode) -> None:
    said = f"{node.value} is a number in some versions of YAML: leave the zero out, or put it in quotes"
    raise yaml.constructor.ConstructorError(None, None, said, node.start_mark)


_Loader.yaml_implicit_resolvers = {}
_Loader.add_constructor("!unclear", _refuse)
for _tag, _pattern, _first in (
    ("!unclear", r"[-+]?0[0-9_]+|0o[0-7]+|[-+]?[0-9]+(?::[0-5]?[0-9])+", list("-+0123456789")),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9_]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
):
    _name = _tag if _tag.startswith("!") else f"tag:yaml.org,2002:{_tag}"
    _Loader.add_implicit_resolver(_name, re.compile(f"^(?:{_pattern})$"), _first)


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def find(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Raises:
        FileNotFoundError: neither.
    """
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    if recipe in names():
        return FOLDER / f"{recipe}.yaml"
    hint = near(recipe, names())
    known = "; ".join([", ".join(names()), *[hint] * bool(hint)])
    raise FileNotFoundError(f"no recipe '{recipe}': neither a file nor one of {known}")


def load(recipe: str) -> dict[str, Any]:
    """A recipe's values over those of the recipe that it names as its ``base``, which may have a base, too.

    Sections are merged key by key; one that names another ``name`` (of a quantizer) takes the base's place, one that is
    ``null`` leaves the base's out. A text that begins with ``~/`` is a path in the home folder.

    Raises:
        FileNotFoundError: the recipe or a base is neither a file nor one of the package's.
        ValueError: a file that is no recipe, or recipes that build on each other in a circle; the message names it.
    """
    files: list[Path] = []
    layers: list[dict[str, Any]] = []  # the recipe itself first
    file: Path | None = find(recipe)
    while file is not None:
        if file.resolve() in files:
            raise ValueError(f"{file} builds on itself through base")
        files.append(file.resolve())
        written = _read(file)
        base = written.pop("base", None)
        if base is not None and not isinstance(base, str):
            raise ValueError(f"{file}: base must be the name of a recipe, got {base!r}")
        layers.append(written)
        beside = file.parent / (base or "")  # a path is meant from the recipe's own folder
        file = None if base is None else beside if beside.is_file() else find(base)
    return reduce(_merged, reversed(layers))


def _read(file: Path) -> dict[str, Any]:
    try:
        written = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{file}{line}: not a recipe: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a recipe: {one_line(error)}") from error
    if not isinstance(written, dict):
        found = "it is empty" if written is None else f"it holds {type(written).__name__}"
        raise ValueError(f"{file}: a recipe holds 'key: value' lines, {found}")
    return {key: _expanded(value) for key, value in written.items()}


def _expanded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` over ``base``, section by section."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            replaced = "name" in value and value["name"] != below.get("name", value["name"])
            merged[key] = value if replaced else _merged(below, value)
        elif value is None and isinstance(below, dict):
            del merged[key]
        else:
            merged[key] = value
    return merged
