"""Speed of two source trees in one run: each way of running before and after a change, and the ratio.

    mkdir /tmp/before && git archive main src benchmarks | tar x -C /tmp/before
    python benchmarks/before_after.py /tmp/before . --json ratios.json      # on a GPU, in less than 200 s
    python benchmarks/before_after.py /tmp/before . --device cpu --toy      # whether this script works

Each tree has a process of its own, which imports that tree's package, `throughput.py` and `train_step.py`. They take
turns at every case, so that both see the same clock, temperature and neighbours; who begins changes from round to
round. Rounds go on while there is time, and the best one counts. Before them both compile their kernels, at once.
Ends with status 1 where a way has lost more than `--allowed` of its speed, or was not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from table import Table, add_json

Case = dict[str, Any]
Rates = dict[str, float]  # images a second, by what was measured
INFERENCE = ("published", "layout", "fused", "graphs")
TRAINING = ("published", "fused", "graphs", "recompute")


def cases(device: str, toy: bool) -> list[Case]:
    """What is measured in each round."""
    found: list[Case] = []
    size = 32 if toy else 256
    for batch in (2,) if toy else (1, 32):
        found += [{"task": "inference", "size": size, "batch": batch, "way": way} for way in INFERENCE]
    found += [{"task": "train", "size": size, "batch": 2 if toy else 32, "way": way} for way in TRAINING]
    found += [
        {"task": "train_step", "stage": stage, "way": way, "toy": toy}
        for stage, way in (("none", "eager"), ("none", "graphs"), ("patch", "graphs"))
    ]
    return [case for case in found if device == "cuda" or case["way"] != "graphs"]


class Tree:
    """A process that measures cases with the package of a source tree."""

    def __init__(self, path: Path, device: str, toy: bool) -> None:
        source = path.resolve()
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(source), str(source), "--serve", "--device", device, *["--toy"][: int(toy)]],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([f"{source}/src", os.environ.get("PYTHONPATH", "")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, case: Case) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Rates:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.process.args[2]} has ended: see above")
        return json.loads(line)


def serve(tree: Path, device: str, toy: bool) -> None:
    """Answer cases from standard input, one a line, with the rates of each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the scripts print is no answer
    sys.path[0] = f"{tree}/benchmarks"
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    import torch

    import gsqtok

    assert Path(gsqtok.__file__).is_relative_to(tree), f"{gsqtok.__file__} is not of {tree}"
    throughput, train_step = map(importlib.import_module, ("throughput", "train_step"))
    model = throughput.model(8, toy)
    for line in sys.stdin:
        case = json.loads(line)
        of_steps = case["task"] == "train_step"
        torch.backends.cudnn.allow_tf32 = of_steps  # as each script has it
        try:
            rates = steps(train_step, case) if of_steps else networks(throughput, model, device, case)
        except torch.cuda.OutOfMemoryError as error:
            print(error, file=sys.stderr)
            rates = {}
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        print(json.dumps(rates), file=answers, flush=True)


def networks(throughput: Any, model: Any, device: str, case: Case) -> Rates:
    """The networks alone, by `throughput.py`."""
    args = argparse.Namespace(device=device, seconds=0.5, models={8: model}, matrix_rate=1.0)
    inputs = (args, 8, case["size"], case["batch"], case["way"])
    if case["task"] == "train":
        rows = throughput.run_training(*inputs, "train")
        rows = [rows] if isinstance(rows, dict) else rows  # as trees before had it
    else:
        rows = list(throughput.run_inference(*inputs))
    return {f"{row['task']} batch {row['batch']} {row['way']}": row["images_per_second"] for row in rows}


def steps(train_step: Any, case: Case) -> Rates:
    """Whole steps of training, by `train_step.py`."""
    args = argparse.Namespace(
        quick=case["toy"], recipe="gan-f8-128", eager=case["way"] == "eager", batch_size=None, precision=None,
        backbone="tf_efficientnet_lite0", warmup=1 if case["toy"] else 4, steps=2 if case["toy"] else 10,
    )  # fmt: skip
    row = train_step.measure(args, case["stage"])
    return {f"train_step {case['stage']} {case['way']}": row["images_per_second"]}


def rounds(trees: list[Tree], wanted: list[Case], until: float) -> tuple[list[Rates], int]:
    """The best rates of each tree, and how many rounds there were."""
    best: list[Rates] = [{}, {}]
    took = [0.0] * len(wanted)
    number = 0
    while True:
        for i, case in enumerate(wanted):
            begin = time.monotonic()
            if begin + took[i] > until:
                return best, number
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                trees[which].ask(case)
                for name, rate in trees[which].answer().items():
                    best[which][name] = max(rate, best[which].get(name, 0.0))
            took[i] = time.monotonic() - begin
        number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="tiny networks and images")
    parser.add_argument("--seconds", type=float, default=180, help="after which nothing more is begun (default: 180)")
    parser.add_argument("--allowed", type=float, default=0.03, help="share of its speed that a way may lose")
    add_json(parser)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.before, args.device, args.toy)
    until = time.monotonic() + args.seconds
    wanted = cases(args.device, args.toy)
    trees = [Tree(path, args.device, args.toy) for path in (args.before, args.after)]
    small = {"size": 64, "batch": 1, "way": "fused"}
    for task in ("inference", "train"):
        for tree in trees:
            tree.ask({"task": task, **small})
        for tree in trees:
            tree.answer()
    (before, after), number = rounds(trees, wanted, until)
    for tree in trees:
        with contextlib.suppress(BrokenPipeError):
            tree.process.stdin.close()
        tree.process.wait()
    report(before, after, number, len(wanted), args)


def report(before: Rates, after: Rates, number: int, wanted: int, args: argparse.Namespace) -> None:
    print(f"best of {number} whole rounds, images a second")
    columns = {"name": ("way", ""), "before": ("before", ",.1f"), "after": ("after", ",.1f"), "ratio": ("ratio", ".3f")}
    table, slower = Table(columns | {"note": ("", "")}), 0
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        ratio = new / old if old and new else None
        slow = ratio is None or ratio < 1 - args.allowed
        slower += slow
        row = {"name": name, "before": old, "after": new, "ratio": ratio}
        table.add(row | {"note": "slower" if slow else ""})
    table.write(args.json, args.device, rounds=number)
    if not number:
        print("not all cases were measured: give it more --seconds")
    sys.exit(1 if slower or not number else 0)


if __name__ == "__main__":
    main()
