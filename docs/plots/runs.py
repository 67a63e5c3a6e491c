"""Training runs beside each other: their curves, and the same images through each tokenizer.

python docs/plots/runs.py RUN [RUN ...] --data SOURCE --output docs/images/NAME     # NAME-curves.png, NAME-images.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from torch import Tensor

from gsqtok import ImageTokenizer
from gsqtok.cli.demo import IMAGES
from gsqtok.data import ImageTransform, eval_loader, open_source, to_pil
from gsqtok.evaluation.reconstruct import reconstruct
from gsqtok.evaluation.report.plots import COLOURS, DPI, logarithmic_y, style
from gsqtok.training.run_folder import RunFolder

CELL = 196  # pixels
SMALL = (3, 50, 333, 1000)
PARTS = {  # left, top, side in the demo's images
    "astronaut.png": (75, 0, 96),
    "chelsea.png": (140, 60, 96),
    "coffee.png": (140, 40, 96),
    "hubble.png": (120, 130, 96),
    "rocket.png": (150, 40, 96),
}
CURVES = {
    "loss/reconstruction": "reconstruction loss (training)",
    "validation/psnr": "PSNR, dB (validation)",
    "validation/ssim": "SSIM (validation)",
    "discriminator/accuracy": "told right by the discriminator",
}


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of training runs")
    parser.add_argument("--data", required=True, help="small images to show")
    parser.add_argument("--output", required=True, help="where to, without -curves.png")
    arguments = parser.parse_args()
    curves(arguments.runs, Path(f"{arguments.output}-curves.png"))
    images(arguments.runs, arguments.data, Path(f"{arguments.output}-images.jpg"))


def curves(runs: list[Path], path: Path) -> None:
    """What metrics.jsonl says of each run."""
    from matplotlib.figure import Figure

    logs = {run.name: RunFolder(run).metrics() for run in runs}
    with style():
        figure = Figure((10, 5.6), layout="constrained")
        for axis, (name, title) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
            for (run, rows), colour in zip(logs.items(), COLOURS, strict=False):
                points = [(row["step"], row[name]) for row in rows if name in row]
                if points:
                    marker = "." if len(points) < 10 else ""
                    axis.plot(*zip(*points, strict=True), color=colour, label=run, marker=marker)
            axis.set(xlabel="step", title=title)
            if name == "loss/reconstruction":
                logarithmic_y(axis)
            axis.legend()
        figure.savefig(path, dpi=DPI)


def images(runs: list[Path], data: str, path: Path) -> None:
    """Originals, then each run's reconstructions: whole small images, and parts of the demo's, enlarged."""
    small, large, whole = open_source(data), open_source(IMAGES), ImageTransform(None, crop="none")
    keys = small.all_keys()
    chosen = {small: {keys[i] for i in SMALL}, large: None}
    rows: list[list[Image.Image]] = []
    for run in runs:
        tokenizer = ImageTokenizer.from_pretrained(str(run))
        results = [
            result
            for source, own in chosen.items()
            for result in reconstruct(tokenizer, eval_loader(source, whole, batch_size=1, keys=own))
        ]
        if not rows:
            rows.append([_part(result.name, result.original) for result in results])
        rows.append([_part(result.name, result.reconstruction) for result in results])
    sheet = Image.new("RGB", (CELL * len(rows[0]), CELL * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, part in enumerate(row):
            sheet.paste(part, (CELL * x, CELL * y))
    sheet.save(path, quality=90)


def _part(name: str, pixels: Tensor) -> Image.Image:
    image = to_pil(pixels)
    left, top, side = PARTS.get(Path(name).name, (0, 0, image.width))
    return image.crop((left, top, left + side, top + side)).resize((CELL - 4, CELL - 4), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
