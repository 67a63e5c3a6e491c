"""Is a tokenizer good at every image size? It beside copies that were fine-tuned for one size each.

    python docs/plots/sizes.py SOURCE ... --validation SOURCE ... -o FOLDER [--model MODEL] [--steps 1500]

SOURCEs are parquet files or folders of images of 256 px or more; those of 512 and 1,024 px are 2 x 2 and 4 x 4 of their
central squares, side by side. Everything is kept in FOLDER and found again there; FOLDER/sizes.json has the results.
On an H200 about 40 s a size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageOps

import gsqtok
from gsqtok.data import decode_image, open_source

SMALL, SIDE = (64, 128, 256), 256
SCALES = {64: [1, 1.5, 2, 4], 128: [1, 1.5, 2], 256: [1]}
EMBEDDED = str(Path(gsqtok.__file__).parent / "embedded")
PIXELS = 32 * 256 * 256  # of a batch, as in the recipes of compact networks


def main() -> None:
    """Fine-tune and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", nargs="+")
    parser.add_argument("--validation", nargs="+", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default=EMBEDDED, help="a saved tokenizer with a compact network")
    parser.add_argument("--recipe", default="f8-small", help="by which it was trained")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    args = parser.parse_args()
    rows = []
    for size in args.sizes:
        train, validation = args.train, args.validation
        if size not in SMALL:
            train = [mosaics(train, args.output / f"train-{size}", size)]
            validation = [mosaics(validation, args.output / f"validation-{size}", size)]
        tuned = fine_tuned(args, size, train)
        models = {"model": args.model, "fine-tuned": tuned}
        found = {}
        for name, model in models.items():
            found[name] = measured(model, validation, size, args.output / f"{name}-{size}.json")
        rows.append({"size": size} | found)
        print(
            size, *(f"{name} {row['psnr']:.2f} dB, SSIM {row['ssim']:.3f}" for name, row in found.items()), flush=True
        )
    result = {"model": args.model, "steps": args.steps, "learning_rate": args.learning_rate, "rows": rows}
    (args.output / "sizes.json").write_text(json.dumps(result, indent=2) + "\n")


def mosaics(sources: list[str], folder: Path, size: int) -> str:
    """A folder of images of ``size`` px: the sources' central squares, 256 px each, side by side."""
    if not folder.exists():
        aside = folder.with_suffix(".part")
        aside.mkdir(parents=True, exist_ok=True)
        source = open_source(sources)
        rows = [row.data for span in source.spans() for row in source.rows(span) if row.data is not None]
        number = (size // SIDE) ** 2
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for i in range(len(rows) // number):
                pool.submit(write_mosaic, rows[i * number : (i + 1) * number], size, aside / f"{i:05}.png")
        aside.rename(folder)
    return str(folder)


def write_mosaic(parts: list[bytes], size: int, file: Path) -> None:
    """Write one of them."""
    mosaic = Image.new("RGB", (size, size))
    for i, part in enumerate(parts):
        place = (SIDE * (i % (size // SIDE)), SIDE * (i // (size // SIDE)))
        mosaic.paste(ImageOps.fit(decode_image(part), (SIDE, SIDE)), place)
    mosaic.save(file, compress_level=1)


def fine_tuned(args: argparse.Namespace, size: int, train: list[str]) -> str:
    """The folder of a run that starts from the model and sees crops of this size alone."""
    run = args.output / f"fine-tuned-{size}"
    if not (run / "tokenizer" / "config.json").exists():
        crops = [{"size": size, "share": 1.0, "scales": SCALES.get(size, [1])}]
        options = {
            "initialize_from": args.model,
            "data.train": json.dumps(train),
            "data.size": size,
            "data.crops": json.dumps(crops),
            "data.cache": args.output / "decoded",
            "batch_size": max(1, PIXELS // size**2),
            "steps": args.steps,
            "optimizer.learning_rate": args.learning_rate,
            "optimizer.warmup_steps": args.steps // 15,
            "output": run,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        subprocess.run([sys.executable, "-m", "gsqtok", "train", args.recipe, *words], check=True)
    return str(run)


def measured(model: str, validation: list[str], size: int, file: Path) -> dict[str, float]:
    """Metrics of the validation images at this size."""
    if not file.exists():
        resized = ["--size", str(size), "--crop", "center"] if size in SMALL else []
        words = ["evaluate", model, *validation, *resized, "--features", "none", "-o", str(file)]
        subprocess.run([sys.executable, "-m", "gsqtok", *words], check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads(file.read_text())["metrics"]
    return {name: metrics.get(name) for name in ("bits_per_pixel", "psnr", "ssim", "ms_ssim")}


if __name__ == "__main__":
    main()
