"""The one table of all benchmarks: rows on the terminal as they are measured, and as JSON with how they were.

Every benchmark has `--json FILE`. `python benchmarks/pages.py` makes the pages of the documentation from such files; a
file that is there keeps its title, level, columns and text, so that it can be measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gsqtok.evaluation.environment import environment

KEPT = ("title", "level", "text", "columns", "after")  # of a file that is written again


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option that every benchmark has."""
    parser.add_argument("--json", type=Path, help="also write the rows, and how they were measured, to this file")


@dataclass
class Table:
    """Rows of one benchmark.

    Attributes:
        columns: of a row's keys, the heading and the format, such as ("median, ms", ".3f"), in order. Other keys are
            written to the file alone; None and what is missing is shown as a dash.
    """

    columns: dict[str, tuple[str, str]]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        """Take a row and print it, the first below the headings."""
        if not self.rows:
            print("  ".join(f"{heading:>{self._width(key)}}" for key, (heading, _) in self.columns.items()))
        self.rows.append(row)
        print("  ".join(f"{cell(row, key, self.columns):>{self._width(key)}}" for key in self.columns), flush=True)

    def _width(self, key: str) -> int:
        return max(len(self.columns[key][0]), 9)

    def write(self, path: Path | None, device: str | torch.device, **more: Any) -> None:
        """Write the file, if one is wanted, aside and renamed; ``more`` says what else the rows depend on."""
        if path is None:
            return
        before = json.loads(path.read_text()) if path.exists() else {}
        measured = {
            "columns": {key: list(column) for key, column in self.columns.items()},
            **{key: before[key] for key in KEPT if key in before},
            "measured": provenance(device) | more,
            "rows": self.rows,
        }
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
        aside.replace(path)


def cell(row: dict[str, Any], key: str, columns: dict[str, Any]) -> str:
    """A value as its column shows it."""
    value = row.get(key)
    if value is None or value != value:
        return "-"
    return value if isinstance(value, str) else format(value, columns[key][1])


def provenance(device: str | torch.device) -> dict[str, Any]:
    """With what something is measured: device, versions, date, command, commit, and the load of the machine."""
    found = environment(torch.device(device))
    settings = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ]
    words = [*settings, "python", _script(), *_arguments()]
    found["command"] = shlex.join(words)
    found["commit"] = _git("rev-parse", "--short=10", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")
    found["load"] = round(os.getloadavg()[0], 1)
    return found


def _arguments() -> list[str]:
    """The command's, without the file that is written."""
    words = sys.argv[1:]
    if "--json" in words:
        place = words.index("--json")
        del words[place : place + 2]
    return words


def _script() -> str:
    return f"benchmarks/{Path(sys.argv[0]).name}"


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
