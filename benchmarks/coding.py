"""Entropy coding of tokens without a prior, in Mpixel/s on one core, beside Pillow's WebP on the same images.

python benchmarks/coding.py SOURCE [--model MODEL] [--images 100] [--size 256]
"""

import argparse
import io
import time

import numpy as np
import torch
from PIL import Image
from table import Table, add_json

from gsqtok import ImageTokenizer
from gsqtok.data import ImageTransform, eval_loader, open_source, to_pil
from gsqtok.generation.coder import AdaptiveFrequencies, StaticFrequencies

REPEATS = 3


def best(function):
    """The result, and the shortest of a few times."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return result, min(times)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("source")
    p.add_argument("--model")
    p.add_argument("--split")
    p.add_argument("--images", type=int, default=100)
    p.add_argument("--size", type=int, default=256)
    add_json(p)
    args = p.parse_args()
    torch.set_num_threads(1)
    tokenizer = ImageTokenizer.from_pretrained(args.model)
    images, grids = [], []
    for batch in eval_loader(
        open_source(args.source, split=args.split), ImageTransform(args.size, crop="center"), batch_size=8
    ):
        images += [to_pil(image) for image in batch["image"]]
        grids += list(tokenizer.encode(batch["image"]).numpy())
        if len(images) >= args.images:
            break
    megapixels = sum(image.width * image.height for image in images) / 1e6

    def as_webp(image):
        file = io.BytesIO()
        image.save(file, "WEBP")
        return file.getvalue()

    files, writing = best(lambda: [as_webp(image) for image in images])
    _, reading = best(lambda: [np.asarray(Image.open(io.BytesIO(file))) for file in files])
    print(f"{len(images)} images, {megapixels:.1f} Mpixel; {tokenizer.quantizer}")
    columns = {"way": ("way", ""), "write": ("write, Mpixel/s", ".1f"), "write_ratio": ("of WebP", ".1f")}
    columns |= {"read": ("read, Mpixel/s", ".1f"), "read_ratio": ("of WebP", ".1f")}
    table = Table(columns | {"bits": ("of a fixed length's bits", ".4f")})
    table.add({"way": "WebP", "write": megapixels / writing, "read": megapixels / reading})
    size, groups = tokenizer.quantizer.codebook_size, tokenizer.quantizer.tokens_per_position
    for name, make in (
        ("static", lambda: StaticFrequencies.of(grids, size)),
        ("adaptive", lambda: AdaptiveFrequencies(groups, size)),
    ):
        data, encoding = best(lambda make=make: make().encode(grids))
        coder, parts = make(), [(part, grid.shape[:2]) for part, grid in zip(data, grids, strict=True)]
        decoded, decoding = best(lambda coder=coder, parts=parts: coder.decode(parts))
        assert all(np.array_equal(a, b) for a, b in zip(decoded, grids, strict=True))
        fixed = sum(grid.size for grid in grids) * np.log2(size)
        row = {"way": name, "write": megapixels / encoding, "write_ratio": writing / encoding}
        row |= {"read": megapixels / decoding, "read_ratio": reading / decoding}
        table.add(row | {"bits": 8 * sum(map(len, data)) / fixed})
    table.write(args.json, "cpu", images=len(images), megapixels=megapixels)


if __name__ == "__main__":
    main()
