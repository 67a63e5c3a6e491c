"""The same small autoencoder trained with every quantizer at equal bits: same seed, steps and data.

    python benchmarks/quantizer_training.py --train TRAIN.parquet --validation VALIDATION.parquet --output runs/equal

Trains ``gsqtok train embedded`` at 64 px once for each method at 36 bits a position (of benchmarks/quantizers.py;
0.5625 bits a pixel at f8), measures it on the validation pictures, and prints the table of docs/quantizers.md. A method
whose figures are in the output folder already is not trained again; one that was cut off goes on from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml
from quantizers import SETTINGS

from gsqtok.cli.recipes import find
from gsqtok.quantizers import build_quantizer

COLUMNS = ("psnr", "ssim", "usage", "perplexity", "entropy_bits")


def gsqtok(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "gsqtok", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs="+", required=True, help="training pictures")
    parser.add_argument("--validation", required=True, help="validation pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--bits", type=int, default=36, choices=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=None, help="all of that many bits, and identity, by default")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--features", default="none", help="of a Fréchet distance, such as timm:tf_efficientnet_lite1")
    parser.add_argument("--options", nargs="*", default=[], help="further options of gsqtok train, as a.b=value")
    arguments = parser.parse_args()

    settings = SETTINGS[arguments.bits] | {"identity": {"dim": 16}}
    methods = arguments.methods or list(settings)
    for method in methods:
        folder = arguments.output / method
        if (folder / "figures.json").exists():
            continue
        options = dict(settings[method])
        recipe = yaml.safe_load(Path(find("embedded")).read_text())
        recipe["model"] |= {"latent_dim": options.pop("dim"), "quantizer": {"name": method} | options}
        recipe["data"] |= {"size": 64, "max_resize": None, "train": arguments.train}
        recipe |= {"steps": arguments.steps, "batch_size": arguments.batch_size, "seed": 0, "output": str(folder)}
        written = arguments.output / f"{method}.yaml"
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(yaml.safe_dump(recipe))
        more = [
            part for option in arguments.options for part in (f"--{option.split('=', 1)[0]}", option.split("=", 1)[1])
        ]
        gsqtok("train", str(written), *more, *(["--resume"] if folder.exists() else []))
        features = ["--features", arguments.features, "--perceptual", "--batch-size", "100"]
        target = str(folder / "figures.json")
        gsqtok("evaluate", str(folder), arguments.validation, "--size", "64", *features, "-o", target)

    figures = {m: json.loads((arguments.output / m / "figures.json").read_text())["figures"] for m in methods}
    columns = [*COLUMNS, *(name for name in next(iter(figures.values())) if name.startswith("frechet_distance"))]
    print(f"| method | bits | {' | '.join(columns)} |")
    print(f"|---|---|{'---|' * len(columns)}")
    for method in methods:
        bits = build_quantizer(method, **settings[method]).bits
        cells = [f"{figures[method][name]:.4g}" if name in figures[method] else "" for name in columns]
        print(f"| {method} | {bits:.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
