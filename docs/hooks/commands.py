"""Make the command reference from the parsers that read the arguments: one page for each command's first word."""

import argparse
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from gsqtok.cli import COMMANDS, function_of
from gsqtok.cli.parser import Parser, build

INTRODUCTION = """# Commands

`gsqtok COMMAND --help` prints what these pages say. `-` and `_` are the same in options. The exit status is 0, 1 for an
error that you can mend, 2 for wrong usage, and 75 for a training that was asked to stop and has saved. An error is one
line; `GSQTOK_TRACEBACK=1` shows where it happened.

| command | |
|---|---|
"""


def on_config(config: MkDocsConfig) -> None:
    """Put the pages into the navigation."""
    (reference,) = [part["Reference"] for part in config.nav or [] if "Reference" in part]
    (commands,) = [part for part in reference if "Commands" in part]
    commands["Commands"] = ["commands/index.md", *({word: f"commands/{word}.md"} for word in words())]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    parsers = {command: build(command, function_of(command)) for command in COMMANDS}
    rows = []
    for command, parser in parsers.items():
        anchor = f"gsqtok-{command.replace(' ', '-')}"
        first = (parser.description or "").splitlines()[0]
        rows.append(f"| [`{command}`]({command.split()[0]}.md#{anchor}) | {cell(first)} |")
    index = INTRODUCTION + "\n".join(rows) + "\n"
    files.append(File.generated(config, "commands/index.md", content=index))
    for word in words():
        sections = [section(name, parser) for name, parser in parsers.items() if name.split()[0] == word]
        page = f"# gsqtok {word}\n\n" + "\n".join(sections) if len(sections) > 1 else sections[0].removeprefix("#")
        files.append(File.generated(config, f"commands/{word}.md", content=page))
    return files


def words() -> list[str]:
    """First words of the commands, each once, in order."""
    return list(dict.fromkeys(command.split()[0] for command in COMMANDS))


def section(command: str, parser: Parser) -> str:
    """What a command does, its usage, its options and examples."""
    text = [f"## gsqtok {command}", parser.description or "", f"```text\n{usage(command, parser)}\n```"]
    for title, actions in groups(parser):
        if title:
            text.append(f"**{title}**")
        rows = "\n".join(["| | what | default |", "|---|---|---|", *map(row, actions)])
        text.append(f'<div class="options" markdown>\n\n{rows}\n\n</div>')
    examples = (parser.epilog or "").removeprefix("example:\n")
    lines = "\n".join(line.strip() for line in examples.splitlines())
    return "\n\n".join([*text, f"```bash\n{lines}\n```", ""])


def usage(command: str, parser: Parser) -> str:
    """The command with its arguments and the options that it must have."""
    words = ["gsqtok", command]
    for action in parser._actions:
        name = str(action.metavar or action.dest.upper())
        if action.option_strings and action.required:
            words.append(f"{action.option_strings[0]} {name}")
        elif not action.option_strings:
            several = " ..." if action.nargs in ("+", "*") else ""
            words.append(f"[{name}{several}]" if action.nargs in ("?", "*") else name + several)
    return " ".join([*words, "[OPTION ...]"])


def groups(parser: Parser) -> Iterator[tuple[str, list[argparse.Action]]]:
    """The options by section of the configuration; arguments and a command's own options come first."""
    found: dict[str, list[argparse.Action]] = {"": []}
    options = {name for action in parser._actions for name in action.option_strings if not name.endswith(".help")}
    sections = {name.rpartition(".")[0] for name in options}
    for action in parser._actions:  # argparse has no public list of them
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        name = max(action.option_strings, key=len, default="").removeprefix("--")
        if name.endswith(".help") or f"--{name}" in sections:  # a whole section, which its options explain
            continue
        found.setdefault(name.rpartition(".")[0], []).append(action)
    yield from ((title and f"`--{title}`", actions) for title, actions in found.items() if actions)


def row(action: argparse.Action) -> str:
    """An option as a line of a table."""
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
    text = action.help or ""
    default = "" if action.default in (None, argparse.SUPPRESS, [], ()) or action.nargs == 0 else f"`{action.default}`"
    if action.required and action.option_strings:
        default = "required"
    if action.choices:
        text += f" ({', '.join(map(str, action.choices))})"
    return f"| {names} | {cell(text)} | {cell(default)} |"


def cell(text: str) -> str:
    """Text that cannot end a cell of a table, or be taken for a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
