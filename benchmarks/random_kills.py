"""Kill training and tokenizing at random moments, go on each time, and say what was lost.

    python benchmarks/random_kills.py                  25 kills each of training, GAN training and tokenizing
    python benchmarks/random_kills.py --only tokenize --kills 5 --seed 1

Each command runs on two ranks of torchrun, with tiny models on the CPU. SIGKILL goes to all processes at once (as when
a machine is lost) or to one rank (as when memory runs out); SIGTERM goes to the launcher, to one rank, or to all
processes (as schedulers do). A quarter of the signals come while the command starts, the others while it works.

What is left after each kill is checked: no checkpoint may be damaged. A run that comes to its end is compared with one
that nobody disturbed: weights, optimiser, averages and the log of every step bit by bit, or the hashes of all shards.
The exit status is 1 if anything differs. Needs what the tests need: pip install -e '.[test]'
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from safetensors.torch import load_file

import gsqtok
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig
from gsqtok.tokens.manifest import read_manifest
from gsqtok.tokens.verify import verify
from gsqtok.training.run_folder import RunFolder, damage_of, step_of

PACKAGE = Path(gsqtok.__file__).parent
RANKS = 2
STEPS = 120
IMAGES = 600
KILLS = [("SIGKILL", "all"), ("SIGKILL", "a rank"), ("SIGTERM", "launcher"), ("SIGTERM", "a rank"), ("SIGTERM", "all")]
STARTING = 0.25  # the share of kills that come before the command has begun its work
SPAN = 0.4  # the others come within this share of the work of an undisturbed run
PATIENCE = 300  # seconds after which a command that should end is said to hang


class Run:
    """``torchrun -m gsqtok ...`` on two ranks, whose every process can be found."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.processes: list[psutil.Process] = []
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), "-m", "gsqtok"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
        with log.open("w") as file:
            self.launcher = psutil.Popen(
                [sys.executable, *launch, *arguments], stdout=file, stderr=file, env=environment, start_new_session=True
            )
        self.log = log
        self.began = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def ended(self) -> bool:
        return self.launcher.poll() is not None

    def kill(self, name: str, whom: str, generator: random.Random) -> None:
        try:
            ranks, everyone = self.launcher.children(), [self.launcher, *self.launcher.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        chosen = {"launcher": [self.launcher], "all": everyone}.get(whom) or [generator.choice(ranks or everyone)]
        self.processes = everyone
        for process in chosen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(getattr(signal, name))

    def finish(self) -> int:
        """Wait until no process of it is left."""
        alive = psutil.wait_procs([self.launcher, *self.processes], timeout=PATIENCE)[1]
        if alive:
            for process in alive:
                process.kill()
            raise SystemExit(f"{len(alive)} processes did not end in {PATIENCE} s:\n{self.log.read_text()[-3000:]}")
        return self.launcher.returncode


@dataclass
class Tally:
    """What became of one command."""

    kills: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    saved: int = 0
    again: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


class Training:
    """``gsqtok train``: work is a line of metrics.jsonl."""

    def __init__(self, recipe: str, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder

    def arguments(self, output: Path) -> list[str]:
        images = str(PACKAGE / "demo_images")
        words = ["train", self.recipe, "--data.train", images, "--output", str(output), "--steps", str(STEPS)]
        words += ["--data.size", "16", "--model.multipliers", "[1, 1]", "--data.workers", "1", "--batch_size", "4"]
        return [*words, "--save_every", "15", "--log_every", "1", "--validate_every", "1000", "--resume"]

    def trace(self, output: Path) -> Any:
        """Changes as soon as work begins."""
        file = output / "metrics.jsonl"
        return (file.stat().st_mtime_ns, file.stat().st_ino) if file.exists() else None

    def after_kill(self, output: Path, log: str, tally: Tally) -> None:
        run = RunFolder(output)
        for checkpoint in run.complete():
            if damage := damage_of(checkpoint):
                tally.lost.append(f"{checkpoint.name}: {damage}")
        lines = run.metrics_file.read_text().splitlines() if run.metrics_file.exists() else []
        steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
        latest = run.latest()
        tally.again.append(max(0, max(steps, default=0) - (step_of(latest) if latest else 0)))
        tally.saved += "stopped by" in log

    def differences(self, output: Path, whole: Path) -> list[str]:
        last = f"checkpoints/step-{STEPS:08d}"
        names = [f"{last}/{file.name}" for file in sorted((whole / last).iterdir())]
        names = [name for name in names if name.endswith((".safetensors", ".bin", ".pt"))]
        wrong = [
            name
            for name in [*names, "tokenizer/model.safetensors"]
            if not same(load(output / name), load(whole / name))
        ]
        ours, theirs = (losses(RunFolder(run).metrics()) for run in (output, whole))
        if [step for step, _ in ours] != list(range(1, STEPS + 1)):
            wrong.append("not every step is logged once")
        elif ours != theirs:
            wrong.append("metrics.jsonl")
        return wrong + [str(left) for left in output.rglob(".writing-*")]


class Tokenizing:
    """``gsqtok tokenize``: work is a shard that is done."""

    def __init__(self, folder: Path) -> None:
        self.model, self.source = folder / "model", folder / "images"
        config = TokenizerConfig(
            latent_dim=8,
            channels=32,
            multipliers=(1, 1, 2),
            encoder_blocks=1,
            decoder_blocks=1,
            encoder_middle_blocks=1,
            decoder_middle_blocks=1,
            quantizer={"name": "gsq", "groups": 2, "codebook_size": 64},
        )
        torch.manual_seed(0)
        ImageTokenizer(config).save_pretrained(self.model)
        self.source.mkdir()
        generator = np.random.default_rng(0)
        for number in range(IMAGES):
            pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.source / f"{number:04d}.png")
        (self.source / "broken.png").write_bytes(b"no image")

    def arguments(self, output: Path) -> list[str]:
        words = ["tokenize", str(self.model), str(self.source), "-o", str(output), "--size", "64"]
        return [*words, "--shard-size", "8", "--batch-size", "8", "--workers", "1"]

    def trace(self, output: Path) -> Any:
        return len(list((output / "parts").glob("*.json")))

    def after_kill(self, output: Path, log: str, tally: Tally) -> None:
        tally.again.append(len(list(output.rglob("*.tmp"))))

    def differences(self, output: Path, whole: Path) -> list[str]:
        wrong = verify(output)
        ours, theirs = (read_manifest(folder) for folder in (output, whole))
        if [part.get("sha256") for part in ours["units"]] != [part.get("sha256") for part in theirs["units"]]:
            wrong.append("hashes of shards")
        return wrong + [f"left behind: {left}" for left in output.rglob("*.tmp")]


def load(file: Path) -> Any:
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)


def losses(lines: list[dict[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    logged = [line for line in lines if "loss/total" in line]
    return [(line["step"], {k: v for k, v in line.items() if k.startswith(("loss/", "discr"))}) for line in logged]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def undisturbed(task: Training | Tokenizing, folder: Path) -> tuple[float, float]:
    """Run once to the end: seconds until work began, and seconds of work."""
    output = folder / "whole"
    run, before = Run(task.arguments(output), folder / "whole.txt"), task.trace(output)
    while task.trace(output) == before and not run.ended():
        time.sleep(0.05)
    started = run.seconds()
    if run.finish():
        raise SystemExit(f"the undisturbed run failed:\n{run.log.read_text()[-3000:]}")
    return started, run.seconds() - started


def run_until_killed(
    task: Training | Tokenizing, output: Path, log: Path, seconds: tuple[float, float], generator: random.Random
) -> str | None:
    """Give the command and kill it at a random moment; how, or None where it came to its end before."""
    early, part = generator.random() < STARTING, generator.random()
    name, whom = generator.choice(KILLS)
    before = task.trace(output)
    run = Run(task.arguments(output), log)
    while not run.ended() and (run.seconds() < part * seconds[0] if early else task.trace(output) == before):
        time.sleep(0.01)
    begun = time.monotonic()
    while not early and not run.ended() and time.monotonic() - begun < part * SPAN * seconds[1]:
        time.sleep(0.01)
    if not run.ended():
        run.kill(name, whom, generator)
    status = run.finish()
    if status == 0:
        return None
    return f"{name} to {whom}" + (", starting" if early else "")


def trial(name: str, task: Training | Tokenizing, folder: Path, kills: int, generator: random.Random) -> Tally:
    seconds = undisturbed(task, folder)
    print(f"{name}: undisturbed, it starts in {seconds[0]:.1f} s and works for {seconds[1]:.1f} s", flush=True)
    tally, output = Tally(), folder / "run-0"
    while True:
        log = folder / "log.txt"
        if sum(tally.kills.values()) < kills:
            how = run_until_killed(task, output, log, seconds, generator)
        else:
            how = None
            if Run(task.arguments(output), log).finish():
                raise SystemExit(f"{name}: the last resume failed:\n{log.read_text()[-3000:]}")
        if how is not None:
            tally.kills[how] += 1
            task.after_kill(output, log.read_text(), tally)
            print(f"  {sum(tally.kills.values())}: {how}; {tally.again[-1]}", flush=True)
            continue
        tally.compared += 1
        tally.lost += task.differences(output, folder / "whole")
        if sum(tally.kills.values()) >= kills:
            return tally
        output = folder / f"run-{tally.compared}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("train", "train-gan", "tokenize"), help="one of the three commands")
    parser.add_argument("--kills", type=int, default=25, help="of each command (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals (default: 0)")
    args = parser.parse_args()
    lost = 0
    for name in [args.only] if args.only else ["train", "train-gan", "tokenize"]:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            recipe = "smoke-gan" if name == "train-gan" else "smoke"
            task = Tokenizing(folder) if name == "tokenize" else Training(recipe, folder)
            tally = trial(name, task, folder, args.kills, random.Random(f"{args.seed} {name}"))
        lost += len(tally.lost)
        print(f"{name}: {sum(tally.kills.values())} kills ({dict(sorted(tally.kills.items()))})")
        if name != "tokenize":
            print(
                f"{name}: {tally.saved} times a signal saved first; the others cost {max(tally.again)} logged steps at "
                f"most, {sum(tally.again)} in all, which were taken again"
            )
        print(
            f"{name}: {tally.compared} ends compared with an undisturbed run; lost: {tally.lost or 'nothing'}",
            flush=True,
        )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
