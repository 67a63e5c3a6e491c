"""gsqtok completion."""

from __future__ import annotations

from typing import Literal


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a script that completes commands and options in a shell.

    Args:
        shell: which shell the script is for.

    Example:
          source <(gsqtok completion bash)                              # for this shell
          gsqtok completion bash >> ~/.local/share/bash-completion/completions/gsqtok   # for every new one
    """
    import argparse

    import shtab

    from gsqtok.cli import COMMANDS, function_of
    from gsqtok.cli.parser import build

    parser = argparse.ArgumentParser(prog="gsqtok")
    groups: dict[str, argparse._SubParsersAction] = {"": parser.add_subparsers()}
    for command in COMMANDS:
        *group, name = command.split()
        if group and group[0] not in groups:
            groups[group[0]] = groups[""].add_parser(group[0], help=group[0]).add_subparsers()
        try:
            built = build(command, function_of(command))
        except ImportError:  # of an extra that is not installed
            continue
        summary = (built.description or "").splitlines()[0]
        into = groups[group[0] if group else ""].add_parser(name, help=summary, add_help=False)
        for action in built._actions:
            into._add_action(action)
    print(shtab.complete(parser, shell))
