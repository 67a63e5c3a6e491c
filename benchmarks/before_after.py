"""A benchmark on two source trees in one run: images a second of each row, before and after a change, and their ratio.

    git worktree add /tmp/before main~1
    python benchmarks/before_after.py /tmp/before . throughput.py --factors 8 --batches 1 32 --tasks inference train
    python benchmarks/before_after.py /tmp/before . train_step.py --stages none patch

Each tree runs its own script in a process of its own with its own package, and they take turns. The best of all rounds
counts. Its own options come first. Ends with status 1 where a row has become slower by more than `--allowed`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CASE = (
    "task",
    "stage",
    "mode",
    "precision",
    "ranks",
    "factor",
    "size",
    "batch",
    "batch_size",
    "way",
)  # what names a row


def rows(tree: Path, command: list[str]) -> dict[str, float]:
    """Images a second by case, from the JSON that a script writes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        script, *arguments = command
        subprocess.run(
            [sys.executable, str(tree / "benchmarks" / script), *arguments, "--json", str(file)],
            env=os.environ | {"PYTHONPATH": str(tree / "src")},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        found = json.loads(file.read_text())
    lines: list[dict[str, Any]] = found["rows"] if isinstance(found, dict) else found
    return {
        " ".join(str(line[name]) for name in CASE if name in line): line["images_per_second"]
        for line in lines
        if "images_per_second" in line
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a script of benchmarks/ and its options")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--allowed", type=float, default=0.03, help="share of its speed that a row may lose")
    args = parser.parse_args()
    best: list[dict[str, float]] = [{}, {}]
    for number in range(args.rounds):
        for tree, known in zip((args.before, args.after), best, strict=True):
            for case, rate in rows(tree.resolve(), args.command).items():
                known[case] = max(rate, known.get(case, 0))
            print(f"round {number + 1} of {args.rounds}: {tree}", file=sys.stderr, flush=True)
    before, after = best
    slower = 0
    print(f"{'img/s':48} {'before':>10} {'after':>10} {'ratio':>7}")
    for case in sorted(before.keys() | after.keys()):
        old, new = before.get(case), after.get(case)
        if old is None or new is None:
            print(f"{case:48} {'only ' + ('after' if old is None else 'before'):>21}")
            continue
        slow = new < old * (1 - args.allowed)
        slower += slow
        print(f"{case:48} {old:>10.2f} {new:>10.2f} {new / old:>7.3f}{'  slower' if slow else ''}")
    sys.exit(1 if slower else 0)


if __name__ == "__main__":
    main()
