"""Let a docstring explain several arguments in one line: ``nested, filler: as in ...`` is an entry for each of them."""

import re
from typing import Any

import griffe


class SharedArguments(griffe.Extension):
    """Repeats such a line for each of its names before griffe parses it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of whatever has one."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"(?m)^( {4,})(\w+(?:, \w+)+): ([^\n]*)$", _repeated, obj.docstring.value)


def _repeated(line: re.Match[str]) -> str:
    indent, names, text = line.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
