"""A command's parser, made from the function that runs it: its signature, its type hints and its docstring."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from gsqtok.cli.options import SHARED
from gsqtok.io import printable
from gsqtok.options import near

_SHORT = {"output": "-o"}


class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Paragraphs as they were written; each option ends with its default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").replace("%", "%%")
        if action.required and action.option_strings:
            return f"{text} (required)"
        shown = action.default not in (None, argparse.SUPPRESS, [], ()) and action.nargs != 0
        return f"{text} (default: {_plain(action.default)})" if shown else text


class Parser(ArgumentParser):
    """Wrong usage ends with one line on standard error and exit status 2.

    Attributes:
        reading: the file that the values come from, ``""`` for the command line.
    """

    reading = ""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong, with the nearest name that exists."""
        if not self.prog.startswith("gsqtok "):  # jsonargparse's own, for a section in a list, which names the option
            raise ValueError(message)
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        where = f"{self.reading}: " if self.reading else ""
        line = printable(f"{where}{_explained(str(message), known)}")
        print(f"{self.prog}: error: {line}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def call(verb: str, function: Callable[..., Any], argv: list[str]) -> Any:
    """Run ``gsqtok VERB``: parse its arguments, hand them to its function, and return what it returns."""
    return function(**parse(verb, function, argv))


def parse(verb: str, function: Callable[..., Any], argv: list[str]) -> dict[str, Any]:
    """The function's arguments by name, from the command line; wrong ones end the program with status 2.

    A function with a parameter ``recipe`` and one that is a dataclass reads the latter from the recipe, a YAML file
    or the name of one (`gsqtok.training.recipes`), over which the options go.
    """
    hints = _hints(function)
    parser = build(verb, function, explain=bool({"-h", "--help"} & set(argv)))
    configs: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    argv = _with_known_names(argv, parser)
    namespace = None
    if configs and argv and not argv[0].startswith("-"):
        namespace = _from_recipe(parser, argv[0])
    parsed = parser.parse_args(argv, namespace=namespace)
    try:
        values = vars(parser.instantiate(parsed))
        made = {
            name: hint(**{field.name: values.pop(field.name) for field in dataclasses.fields(hint)})
            for name, hint in configs.items()
        }
    except (ValueError, TypeError) as error:  # values that a configuration refuses
        parser.error(str(error))
    return made | {name: values[name] for name in hints if name not in made}


def build(verb: str, function: Callable[..., Any], *, explain: bool = True) -> Parser:
    """The parser of a command.

    A quantizer's options depend on its method, which may be named last. To parse (``explain=False``) they are therefore
    one mapping, which the configuration checks; to explain they are those of the default method.

    Positional parameters become positional arguments (optional ones if they may be None, several if they are lists),
    keyword-only ones options, and a dataclass an option for each of its fields. Help comes from the docstring, and
    where it leaves a parameter out from ``gsqtok.cli.options.SHARED``.
    """
    doc = docstring_parser.parse(function.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    helps = SHARED | {entry.arg_name: " ".join((entry.description or "").split()) for entry in doc.params}
    examples = textwrap.indent("\n".join(entry.description or "" for entry in doc.examples), "  ")
    hints = _hints(function)
    parser = Parser(
        prog=f"gsqtok {verb}",
        description="\n\n".join(part for part in (doc.short_description, doc.long_description) if part),
        epilog=f"example:\n{examples}",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    if any(dataclasses.is_dataclass(hint) for hint in hints.values()):  # a hundred options; the list below has them
        parser.usage = f"gsqtok {verb} [RECIPE] [--option VALUE ...]"
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            _add_config(parser, hints[name], explain)
        else:
            _add(parser, parameter, hints[name], helps[name])
    return parser


def _add_config(parser: Parser, config: Any, explain: bool) -> None:
    """An option for each field of a training configuration."""
    from gsqtok.training import TrainConfig

    if config is not TrainConfig:
        parser.add_class_arguments(config, None)
        return
    from gsqtok.quantizers import options_type
    from gsqtok.tokenizer import TokenizerConfig

    parser.add_class_arguments(config, None, skip={"model"})
    parser.add_class_arguments(TokenizerConfig, "model", skip={"quantizer"})
    default = dataclasses.asdict(TokenizerConfig().quantizer)
    if explain:
        parser.add_class_arguments(options_type(default["name"]), "model.quantizer", default=default)
    else:
        parser.add_argument("--model.quantizer", type=dict[str, Any], default=default)


def _add(parser: Parser, parameter: inspect.Parameter, hint: Any, text: str) -> None:
    options: dict[str, Any] = {"help": text}
    several, optional = _element(hint), _optional(hint)
    if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
        names = [parameter.name]
        options["metavar"] = parameter.name.upper()
        if several:
            options |= {"nargs": "*" if parameter.default is not parameter.empty else "+", "type": several}
        else:
            options |= {"nargs": "?" if optional else None, "type": hint}
    else:
        names = [*filter(None, [_SHORT.get(parameter.name)]), "--" + parameter.name.replace("_", "-")]
        required = parameter.default is parameter.empty
        options |= {"required": True} if required else {"default": parameter.default}
        if hint is bool:
            options["action"] = "store_true"
        elif several:
            count = len(get_args(hint)) if get_origin(hint) is tuple else "*"
            options |= {"nargs": count, "type": several}
        else:
            options["type"] = hint
        if hint is not bool and not _choices(several or hint):
            options["metavar"] = _metavar(hint)
    parser.add_argument(
        *names, **{key: value for key, value in options.items() if value is not None or key == "default"}
    )


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The parameters' types. One that begins with ``gsqtok.`` is imported here: it may be heavy."""
    hints = {}
    for name, parameter in inspect.signature(function).parameters.items():
        text = parameter.annotation
        heavy = isinstance(text, str) and text.startswith("gsqtok.")
        scope = getattr(inspect.unwrap(function), "__globals__", {})
        if heavy:
            module, _, kind = text.rpartition(".")
            hints[name] = getattr(import_module(module), kind)
        else:
            hints[name] = eval(text, scope) if isinstance(text, str) else text
    return hints


def _optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def _element(hint: Any) -> Any:
    """The type of a list's elements, or of a tuple of equal ones; None for what is neither."""
    for part in get_args(hint) if _optional(hint) else (hint,):
        if get_origin(part) in (list, tuple):
            return get_args(part)[0]
    return None


def _choices(hint: Any) -> tuple[Any, ...]:
    parts = get_args(hint) if _optional(hint) else (hint,)
    return next((get_args(part) for part in parts if get_origin(part) is Literal), ())


def _metavar(hint: Any) -> str:
    parts = get_args(hint) if _optional(hint) else (hint,)
    if int in parts:
        return "N"
    return "X" if float in parts else "PATH" if Path in parts else "TEXT"


def _plain(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)


def _with_known_names(argv: list[str], parser: Parser) -> list[str]:
    """The arguments with each option's name as the parser has it: ``-`` and ``_`` are the same in them."""
    known = {option.replace("-", "_"): option for action in parser._actions for option in action.option_strings}
    words = []
    for word in argv:
        name, sign, value = word.partition("=")
        plain = name.replace("-", "_")
        name = known.get(plain, "--" + plain[2:] if "." in name else name)
        words.append(name + sign + value if word.startswith("--") else word)
    return words


def _from_recipe(parser: Parser, recipe: str) -> Any:
    """The parser's namespace with a recipe's values."""
    from gsqtok.training import recipes

    values = recipes.load(recipe)
    known = [option[2:] for action in parser._actions for option in action.option_strings if option[:2] == "--"]
    known = [name for name in known if not name.endswith(".help")]  # of lists of sections
    _check_keys(values, known, recipe, "")
    parser.reading = recipe
    namespace = parser.parse_object({"recipe": recipe} | values)
    parser.reading = ""
    return namespace


def _check_keys(values: dict[str, Any], known: Iterable[str], recipe: str, prefix: str) -> None:
    """Sections that are none, and keys that do not exist."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if any(option.startswith(f"{name}.") for option in known):
            if not isinstance(value, dict):
                raise ValueError(f"{recipe}: '{name}' must be a section with keys of its own, got {value!r}")
            _check_keys(value, known, recipe, f"{name}.")
        elif name not in known:
            raise ValueError(f"{recipe}: there is no '{name}'{_nearest(name, known)}")


def _explained(message: str, options: list[str]) -> str:
    """A library's message as one line of our own words."""
    line = " ".join(message.split())
    if found := re.match(r"(?i)unrecognized arguments: (\S+)", line):
        return f"there is no option {found[1]}{_nearest(found[1].split('=')[0], options)}"
    line = re.sub(r'^Parser key "(\S+?)"(?: element \d+)?:\s*', lambda key: f"{key[1]}: ", line)
    line = re.sub(r"Does not validate against any of the Union subtypes .*Given value: (.*)$", _of_union(line), line)
    if found := re.search(r"Expected a typing\.Literal\[(.*?)\]\. Got value: (.*)$", line):
        choices = [choice.strip(" '\"") for choice in found[1].split(",")]
        wrong = f"'{found[2]}' is none of {', '.join(choices)}{_nearest(found[2], choices)}"
        return line[: found.start()] + wrong
    return re.sub(r"Expected a <class '(\w+)'>\. Got value: (.*)$", r"'\2' is no \1", line)


def _of_union(line: str) -> Callable[[re.Match[str]], str]:
    choices = re.findall(r"Expected a typing\.Literal\[(.*?)\]", line)
    kinds = [kind for kind in re.findall(r"Expected a <class '(\w+)'>", line) if kind != "NoneType"]
    wanted = (
        f"Expected a typing.Literal[{choices[0]}]" if choices else f"Expected a <class '{kinds[0] if kinds else '?'}'>"
    )
    return lambda found: f"{wanted}. Got value: {found[1]}"


def _nearest(wrong: str, names: Iterable[str]) -> str:
    """``; did you mean '...'?`` where one of the names is near."""
    hint = near(wrong, names)
    return hint and f"; {hint}"
