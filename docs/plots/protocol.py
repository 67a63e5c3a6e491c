"""How far a Fréchet distance moves when one choice of its protocol is changed.

    python docs/plots/protocol.py PICTURES [OTHERS] --split validation --cache FOLDER

reconstructs the pictures with the tokenizer inside the package under each preparation (kept in the cache folder), and
prints the table of docs/evaluation.md: distances in the features of EfficientNet-Lite 0 (`gsqtok[perceptual]`).
OTHERS are further pictures, for the row of another reference set.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from gsqtok.data import ImageTransform, eval_loader, open_source
from gsqtok.evaluation import FrechetDistance, TimmFeatures
from gsqtok.evaluation.metrics import to_8_bits
from gsqtok.evaluation.protocol import AdmTransform, TimmTransform
from gsqtok.tokenizer import ImageTokenizer

SIZE = 64


class NotAntialiased:
    """Short side to the size with bilinear interpolation that looks at four pixels, then the centre."""

    random = False

    def pixels(self, image: Image.Image, generator: object = None) -> np.ndarray:
        """RGB picture -> uint8 (SIZE, SIZE, 3)."""
        pixels = torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float()
        sides = [round(side * SIZE / min(image.size)) for side in pixels.shape[-2:]]
        pixels = (
            F.interpolate(pixels, sides, mode="bilinear", antialias=False)[0].round().to(torch.uint8).movedim(0, -1)
        )
        top, left = ((side - SIZE) // 2 for side in sides)
        return pixels[top : top + SIZE, left : left + SIZE].numpy()


PREPARED = {
    "adm": AdmTransform(SIZE),
    "flex_gen": TimmTransform(SIZE),
    "bicubic": ImageTransform(SIZE),
    "not antialiased": NotAntialiased(),
}


def originals(source, transform) -> torch.Tensor:
    """All pictures, uint8 (N, 3, SIZE, SIZE)."""
    loader = eval_loader(source, transform, batch_size=16)
    return torch.cat([to_8_bits(batch["image"]) for batch in loader])


@torch.no_grad()
def reconstructions(tokenizer: ImageTokenizer, images: torch.Tensor) -> torch.Tensor:
    """float32 in [0, 255], not rounded."""
    parts = images.split(16)
    return torch.cat([(tokenizer.decode(tokenizer.encode(part / 127.5 - 1)) + 1) * 127.5 for part in parts])


def cached(file: Path, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What ``make`` gives, or gave an earlier run."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(make(), file)
    return torch.load(file, weights_only=True)


def distance(real: torch.Tensor, fake: torch.Tensor) -> float:
    """Fréchet distance of two sets of features (N, D)."""
    metric = FrechetDistance(real.shape[1])
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric.compute().item()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures")
    parser.add_argument("others", nargs="?")
    parser.add_argument("--split")
    parser.add_argument("--others-split")
    parser.add_argument("--cache", type=Path, default=Path("protocol-cache"))
    args = parser.parse_args()
    began = time.perf_counter()
    tokenizer = ImageTokenizer.from_pretrained()
    network = TimmFeatures("tf_efficientnet_lite0")
    source = open_source(args.pictures, split=args.split)

    def features(images: torch.Tensor, half: bool = False) -> torch.Tensor:
        parts = []
        for part in images.split(32):
            if half:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    parts.append(network.network(part.float() / 127.5 - 1)[0].mean(dim=(2, 3)).float())
            else:
                parts.append(network(part).pooled)
        return torch.cat(parts)

    real, fake, raw = {}, {}, {}
    for name, transform in PREPARED.items():
        images = originals(source, transform)
        file = args.cache / f"{tokenizer.fingerprint()[:12]}-{name}.pt"
        raw[name] = cached(file, lambda images=images: reconstructions(tokenizer, images))
        real[name], fake[name] = features(images), features(raw[name].round())
        print(f"{name}: {len(images)} pictures, {time.perf_counter() - began:.0f} s", flush=True)
    base = distance(real["adm"], fake["adm"])
    rows = [("the protocol `adm` as it is", base)]
    rows += [(f"prepared as `{name}`", distance(real[name], fake[name])) for name in PREPARED if name != "adm"]
    rows += [
        (f"reconstructions under `adm`, originals under `{name}`", distance(real[name], fake["adm"]))
        for name in PREPARED
        if name != "adm"
    ]
    whole = []
    for batch in eval_loader(source, ImageTransform(None, crop="none"), batch_size=1):
        whole.append(network(to_8_bits(batch["image"])).pooled)
    rows.append(("originals not cropped and not resized", distance(torch.cat(whole), fake["adm"])))
    if args.others:
        others = originals(open_source(args.others, split=args.others_split), PREPARED["adm"])
        chosen = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[: len(real["adm"])]
        rows.append(("as many other pictures as originals", distance(features(others[chosen]), fake["adm"])))
    generator = torch.Generator().manual_seed(0)
    for count in (50, 100, 200):
        values = []
        for _ in range(10):
            part = torch.randperm(len(real["adm"]), generator=generator)[:count]
            values.append(distance(real["adm"][part], fake["adm"][part]))
        rows.append((f"{count} pictures (mean of 10 draws, ± {np.std(values):.1f})", float(np.mean(values))))
    halved = features(originals(source, PREPARED["adm"]), True), features(raw["adm"].round(), True)
    rows.append(("features in bfloat16", distance(*halved)))
    rows.append(("features in bfloat16 on one side", distance(real["adm"], halved[1])))
    rows.append(("reconstructions not rounded to 8 bits", distance(real["adm"], features(raw["adm"]))))
    rows.append(("reconstructions cut off to 8 bits", distance(real["adm"], features(raw["adm"].floor()))))
    print("| one choice changed | Fréchet distance | moves by |\n|---|---|---|")
    for name, value in rows:
        print(f"| {name} | {value:.2f} | {'' if value == base else f'{100 * (value / base - 1):+.1f}%'} |")
    print(
        f"\n{len(real['adm'])} pictures, {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"{time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
