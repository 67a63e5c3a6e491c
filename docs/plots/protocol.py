"""How far a Fréchet distance moves when one choice of its protocol is changed.

    python docs/plots/protocol.py IMAGES [OTHERS] --split validation --cache FOLDER

reconstructs the images with the tokenizer inside the package under each preparation (kept in the cache folder), and
prints the table of docs/results/evaluation.md: distances in the features of EfficientNet-Lite 0 (`gsqtok[perceptual]`).
OTHERS are further images, for the row of another reference set.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from gsqtok.data import ImageTransform, eval_loader, open_source
from gsqtok.evaluation import FrechetDistance, TimmFeatures
from gsqtok.evaluation.protocol import AdmTransform, TimmTransform
from gsqtok.evaluation.similarity import to_8_bits
from gsqtok.tokenizer import ImageTokenizer

SIZE = 64


class NotAntialiased:
    """Short side to the size with bilinear interpolation that looks at four pixels, then the centre."""

    random = False

    def pixels(self, image: Image.Image, generator: object = None) -> np.ndarray:
        """RGB image -> uint8 (SIZE, SIZE, 3)."""
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


def originals(source, transform, keys: set[str] | None = None) -> torch.Tensor:
    """All images, or those with the keys, uint8 (N, 3, SIZE, SIZE)."""
    loader = eval_loader(source, transform, batch_size=16, keys=keys)
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
    parser.add_argument("images")
    parser.add_argument("others", nargs="?")
    parser.add_argument("--split")
    parser.add_argument("--others-split")
    parser.add_argument("--cache", type=Path, default=Path("protocol-cache"))
    args = parser.parse_args()
    began = time.perf_counter()
    tokenizer = ImageTokenizer.from_pretrained()
    network = TimmFeatures("tf_efficientnet_lite0")
    source = open_source(args.images, split=args.split)

    def features(name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        def compute() -> torch.Tensor:
            return torch.cat([network(part).pooled for part in make().split(32)])

        return cached(args.cache / f"features-{name}.pt", compute)

    def reconstructed(name: str) -> torch.Tensor:
        file = args.cache / f"{tokenizer.fingerprint()[:12]}-{name}.pt"
        return cached(file, lambda: reconstructions(tokenizer, originals(source, PREPARED[name])))

    def real(name: str) -> torch.Tensor:
        return features(f"real-{name}", lambda: originals(source, PREPARED[name]))

    def fake(name: str) -> torch.Tensor:
        return features(f"fake-{name}", lambda: reconstructed(name).round())

    base = distance(real("adm"), fake("adm"))

    def row(name: str, value: float, spread: str = "") -> None:
        print(f"| {name} | {value:.2f}{spread} | {100 * (value / base - 1):+.1f}% |", flush=True)

    print("| one choice changed | Fréchet distance | moves by |\n|---|---|---|")
    row("nothing: `adm`", base)
    unrounded = features("unrounded", lambda: reconstructed("adm"))
    row("reconstructions not rounded to 8 bits", distance(real("adm"), unrounded))
    cut = features("cut", lambda: reconstructed("adm").floor())
    row("reconstructions cut off to 8 bits instead of rounded", distance(real("adm"), cut))
    generator = torch.Generator().manual_seed(0)
    for count in (50, 100, 200):
        values = []
        for _ in range(10):
            part = torch.randperm(len(real("adm")), generator=generator)[:count]
            values.append(distance(real("adm")[part], fake("adm")[part]))
        row(f"{count} images (10 draws)", float(np.mean(values)), f" ± {np.std(values):.2f}")
    if args.others:
        others = open_source(args.others, split=args.others_split)
        chosen = set(random.Random(0).sample(others.all_keys(), len(real("adm"))))
        row(
            "originals: as many other images of the same kind",
            distance(features("others", lambda: originals(others, PREPARED["adm"], chosen)), fake("adm")),
        )

    def uncropped() -> torch.Tensor:
        whole = eval_loader(source, ImageTransform(None, crop="none"), batch_size=1)
        return torch.cat([network(to_8_bits(batch["image"])).pooled for batch in whole])

    whole = cached(args.cache / "features-uncropped.pt", uncropped)
    row("originals: neither cropped nor resized", distance(whole, fake("adm")))
    halved, halved_fake = (x.bfloat16().float() for x in (real("adm"), fake("adm")))
    row("features rounded to bfloat16", distance(halved, halved_fake))
    row("features rounded to bfloat16 on one side", distance(real("adm"), halved_fake))
    for name in ("flex_gen", "not antialiased", "bicubic"):
        row(f"originals: prepared as `{name}`", distance(real(name), fake("adm")))
        row(f"both sides: prepared as `{name}`", distance(real(name), fake(name)))
    print(f"\n{len(halved)} images, torch {torch.__version__}, {time.perf_counter() - began:.0f} s in this run")


if __name__ == "__main__":
    main()
