"""The command line: one command, one typed function, from which its parser and its help are made.

Nothing heavy is imported before a command is known.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import pkgutil
import shlex
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from gsqtok import __version__
from gsqtok.available import explained

# Each command and where its function is; the first line of its docstring says what it does.
COMMANDS = {
    "demo": "demo:demo",
    "info": "info:info",
    "reconstruct": "reconstruct:reconstruct",
    "encode": "encode:encode",
    "decode": "decode:decode",
    "tokenize": "tokenize:tokenize",
    "tokens info": "tokens:info",
    "tokens verify": "tokens:verify",
    "tokens merge": "tokens:merge",
    "tokens split": "tokens:split",
    "compress": "compress:compress",
    "decompress": "compress:decompress",
    "prior train": "prior:train",
    "prior evaluate": "prior:evaluate",
    "prior sample": "prior:sample",
    "evaluate": "evaluate:evaluate",
    "compare": "compare:compare",
    "leaderboard": "leaderboard:leaderboard",
    "train": "train:train",
    "recipes ls": "recipes:ls",
    "recipes show": "recipes:show",
    "recipes copy": "recipes:copy",
    "recipes validate": "recipes:validate",
    "study": "study:study",
    "plan": "plan:plan",
    "convert": "convert:convert",
    "export": "export:export",
    "app": "app:app",
    "completion": "completion:completion",
    "doctor": "doctor:doctor",
}
TRAINING = ("train", "prior", "recipes", "study")  # what the extra of that name is for


def main(argv: list[str] | None = None) -> int:
    """Run ``gsqtok COMMAND ...``; the exit status is 0, 1 for an error that a user can mend, or 2 for wrong usage."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage(COMMANDS))
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"gsqtok {__version__}")
        return 0
    command = next((c for c in (" ".join(argv[:2]), argv[0]) if c in COMMANDS), None)
    if command is None:
        return _unknown(argv)
    atexit.register(gc.freeze)  # else the interpreter goes through all of PyTorch's objects before it ends
    from gsqtok.cli import options
    from gsqtok.cli.parser import call

    options.show_warnings()
    options.command = shlex.join(["gsqtok", *argv])
    try:
        with explained("train" if command.split()[0] in TRAINING else ""):
            return call(command, function_of(command), argv[len(command.split()) :]) or 0
    except SystemExit as end:  # of the parser, which has said why
        return int(end.code or 0)
    except KeyboardInterrupt:
        print(f"gsqtok {command}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        sys.stdout = None
        return 0
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("GSQTOK_TRACEBACK"):
            raise
        kind = "" if hasattr(error, "exit_status") else "error: "
        print(f"gsqtok {command}: {kind}{_line(error, argv)}", file=sys.stderr)
        status = getattr(error, "exit_status", None)  # of an end that is no fault
        if isinstance(error, RuntimeError) and status is None:  # the others explain themselves
            print("GSQTOK_TRACEBACK=1 shows where it happened", file=sys.stderr)
        return 1 if status is None else int(status)


def function_of(command: str) -> Callable[..., Any]:
    """The function that runs a command."""
    function: Callable[..., Any] = pkgutil.resolve_name(f"gsqtok.cli.{COMMANDS[command]}")
    return function


def _unknown(argv: list[str]) -> int:
    """Wrong usage, or a group of commands by its name alone."""
    group = {command: where for command, where in COMMANDS.items() if command.startswith(f"{argv[0]} ")}
    if group and argv[1:] in ([], ["-h"], ["--help"]):
        print(_usage(group))
        return 0 if argv[1:] else 2
    from gsqtok.options import near

    wrong = " ".join(argv[:2]) if group else argv[0]
    elsewhere = f"see gsqtok {argv[0] if group else ''}".rstrip() + " --help"
    hint = near(wrong, group or {command.split()[0] for command in COMMANDS}) or elsewhere
    print(f"gsqtok: no command '{wrong}'; {hint}", file=sys.stderr)
    return 2


def _line(error: Exception, argv: list[str]) -> str:
    """An error as one line that says what to do."""
    from gsqtok.io import one_line, printable

    message = printable(one_line(error))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        output = dict(pairwise(argv))
        where = error.filename or output.get("-o") or output.get("--output") or "this machine"
        return f"the disk of {where} is full ({message}); make room and run the command again"
    return message


def _usage(commands: dict[str, str]) -> str:
    width = max(map(len, commands))
    lines = (f"  {command:<{width}}  {_summary(command)}" for command in commands)
    return "\n".join(
        [
            "usage: gsqtok COMMAND ...",
            "",
            "Image tokenizers with Grouped Spherical Quantization.",
            "",
            "commands:",
            *lines,
            "",
            "gsqtok COMMAND --help explains one; gsqtok --version. - and _ are the same in options. Start with:",
            "  gsqtok demo",
            "  gsqtok encode images/ -o tokens.npz",
            "  gsqtok train small --data.train images/ --output runs/mine",
        ]
    )


def _summary(command: str) -> str:
    return (function_of(command).__doc__ or "").splitlines()[0].rstrip(".")
