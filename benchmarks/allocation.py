"""PSNR of one nested tokenizer at equal mean bits: groups everywhere, groups by position, and image codecs.

    python benchmarks/allocation.py runs/nested coco-256/ --fit photos-256/ --json allocation.json

Ways, at the bits of each number of groups k; bits by position include those of the map:

fixed            k groups everywhere
error            by position, from the errors that k groups leave, measured by decoding G times
predicted        by position, from the latent: `GroupAllocator`, its predictor and price learnt on the images of --fit
webp, avif       each file at most as long
webp, avif, one quality  the highest quality for all images that costs no more on average, as error and predicted do

``gain`` is the PSNR over all pixels above that of fixed groups at the same bits, between two k by a straight line.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import takewhile

import numpy as np
import torch
from PIL import Image
from table import Table, add_json
from torch import Tensor

from gsqtok import ImageTokenizer
from gsqtok.data import ImageTransform, eval_loader, open_source, to_pil, to_tensor
from gsqtok.data.workers import processors
from gsqtok.evaluation import Codec
from gsqtok.evaluation.similarity import PEAK, similarity
from gsqtok.tokenizer.allocation import GroupAllocator, allocate, map_bits, measured_errors

Measured = tuple[float, list[dict[str, Tensor]]]  # bits of all images, what `similarity` says of each batch


def images_of(source: str, split: str | None, size: int, count: int, workers: int) -> list[Tensor]:
    """The first images of a source, in batches (B, 3, size, size) in [-1, 1]."""
    loader = eval_loader(
        open_source(source, split=split), ImageTransform(size, crop="center"), batch_size=50, workers=workers
    )
    return [batch["image"] for _, batch in takewhile(lambda pair: pair[0] * 50 < count, enumerate(loader))]


def with_counts(tokenizer: ImageTokenizer, batches: Sequence[Tensor], counts: Sequence[Tensor]) -> Measured:
    """With these groups of each position: counts (B, h, w) of each batch."""
    groups, each = tokenizer.quantizer.tokens_per_position, tokenizer.quantizer.bits_of(1)
    bits, seen = 0.0, []
    for images, kept in zip(batches, counts, strict=True):
        images = images.to(tokenizer.device)
        seen.append(similarity(tokenizer.decode(tokenizer.encode(images, groups=kept)), images))
        varied = int(kept.min()) < int(kept.max())  # a map of one number says nothing
        bits += each * int(kept.sum()) + (map_bits(kept, groups) if varied else 0.0)
    return bits, seen


def coded(batches: Sequence[Tensor], encode: Callable[[Image.Image], bytes]) -> Measured:
    """With a codec, whose files' bytes all count."""
    bits, seen = 0.0, []
    with ThreadPoolExecutor(processors()) as pool:
        for images in batches:
            files = list(pool.map(encode, map(to_pil, images)))
            restored = torch.stack([to_tensor(np.asarray(Image.open(BytesIO(file)).convert("RGB"))) for file in files])
            seen.append(similarity(restored, images))
            bits += 8.0 * sum(map(len, files))
    return bits, seen


def one_quality(codec: Codec, batches: Sequence[Tensor], limit: float) -> Measured:
    """With the highest quality at which all images together take no more bits."""
    low, high = codec.LOWEST[codec.name], 100
    best = coded(batches, lambda image: codec.encode(image, low))
    while low < high:
        middle = (low + high + 1) // 2
        found = coded(batches, lambda image, quality=middle: codec.encode(image, quality))
        low, high, best = (middle, high, found) if found[0] <= limit else (low, middle - 1, best)
    return best


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a tokenizer with nested groups")
    parser.add_argument("data", help="images to measure on")
    parser.add_argument("--fit", required=True, help="other images, to learn the allocation from")
    parser.add_argument("--split", help="of data, where it has several")
    parser.add_argument("--fit-split", help="likewise")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=500, help="at most about so many of each")
    parser.add_argument("--codecs", nargs="*", default=["webp", "avif"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_json(parser)
    args = parser.parse_args()
    tokenizer = ImageTokenizer.from_pretrained(args.model, device=args.device).eval()
    workers = min(8, processors())
    batches = images_of(args.data, args.split, args.size, args.images, workers)
    fit = images_of(args.fit, args.fit_split, args.size, args.images, workers)
    errors = torch.cat([measured_errors(tokenizer, images.to(args.device)).cpu() for images in batches])
    groups, each, pixels = errors.shape[-1], tokenizer.quantizer.bits_of(1), sum(b[:, 0].numel() for b in batches)
    columns = {"k": ("k", "d"), "way": ("way", ""), "bits_per_pixel": ("bits/px", ".4f"), "psnr": ("PSNR, dB", ".2f")}
    table = Table(
        columns | {"psnr_pooled": ("all pixels", ".2f"), "ssim": ("SSIM", ".4f"), "gain": ("gain, dB", "+.2f")}
    )
    line: list[tuple[float, float]] = []  # bits/px and PSNR over all pixels of fixed groups

    def add(k: int, way: str, found: Measured) -> None:
        bits, seen = found[0] / pixels, {name: torch.cat([s[name] for s in found[1]]).double() for name in found[1][0]}
        pooled = float(10 * torch.log10(PEAK**2 * 3 * pixels / seen["squared_error"].sum()))
        if way == "fixed":
            line.append((bits, pooled))
        row = {"k": k, "way": way, "bits_per_pixel": bits, "psnr": float(seen["psnr"].mean())}
        gain = pooled - float(np.interp(bits, *zip(*line, strict=True)))
        table.add(row | {"psnr_pooled": pooled, "ssim": float(seen["ssim"].mean()), "gain": gain})

    for k in range(1, groups + 1):
        add(k, "fixed", with_counts(tokenizer, batches, [torch.full((len(b), *errors.shape[1:3]), k) for b in batches]))
    for k in range(1, groups + 1):
        limit = k * each * errors[..., 0].numel()
        if 1 < k < groups:
            chosen = torch.stack([image.counts for image in allocate(list(errors), each, k * each)])
            add(k, "error", with_counts(tokenizer, batches, chosen.split([len(b) for b in batches])))
            allocator = GroupAllocator.fitted(tokenizer, fit, k)
            predicted = [allocator(tokenizer.latent(images.to(args.device)).float()).cpu() for images in batches]
            add(k, "predicted", with_counts(tokenizer, batches, predicted))
        for name in args.codecs:
            codec = Codec(name, limit / pixels)
            add(k, name, coded(batches, codec.fit))
            add(k, f"{name}, one quality", one_quality(codec, batches, limit))
    table.write(args.json, args.device, model=args.model, images=sum(map(len, batches)), size=args.size)


if __name__ == "__main__":
    main()
