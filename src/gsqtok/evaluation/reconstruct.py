"""Images through a tokenizer and back, one by one, with metrics and something to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gsqtok.data import to_pil
from gsqtok.data.display import enlargement
from gsqtok.evaluation.similarity import similarity
from gsqtok.tokenizer import ImageTokenizer

GAP = 4  # pixels between images
CAPTION = 18  # pixels below them


@dataclass
class Reconstruction:
    """One image and what the tokenizer made of it.

    Attributes:
        name: its name in the source.
        original: (3, H, W) in [-1, 1].
        reconstruction: the same shape, in [-1, 1].
        tokens: (h, w, G) int64.
        psnr: in dB, of the 8-bit images.
        ssim: of the 8-bit images; NaN for sides under 11 pixels.
    """

    name: str
    original: Tensor
    reconstruction: Tensor
    tokens: Tensor
    psnr: float
    ssim: float


def reconstruct(
    tokenizer: ImageTokenizer,
    batches: Iterable[dict[str, Any]],
    tile: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    groups: int | None = None,
) -> Iterator[Reconstruction]:
    """Reconstruct the images of an ``eval_loader``.

    Args:
        tokenizer: what they go through.
        batches: of images on the CPU.
        tile: as ``ImageTokenizer.encode`` takes it; images and feature maps then stay on the CPU.
        progress: with ``tile``, called after each: "encoding" or "decoding", tiles done, tiles in all.
        groups: as ``ImageTokenizer.encode`` takes it.
    """
    encoding, decoding = (progress and partial(progress, what) for what in ("encoding", "decoding"))
    for batch in batches:
        images = batch["image"].to(tokenizer.input_device(tile))
        tokens = tokenizer.encode(images, groups=groups, tile=tile, progress=encoding)
        reconstructions = tokenizer.decode(tokens, size=tuple(images.shape[2:]), tile=tile, progress=decoding).cpu()
        for name, original, new, grid in zip(batch["keys"], batch["image"], reconstructions, tokens.cpu(), strict=True):
            metrics = similarity(new[None], original[None])
            yield Reconstruction(name, original, new, grid, metrics["psnr"].item(), metrics["ssim"].item())


def side_by_side(results: list[Reconstruction], caption: str = "", height: int | None = None) -> Image.Image:
    """One image a row, the original on the left, its reconstruction on the right, metrics below.

    Args:
        results: what to show.
        caption: a line for the top.
        height: scale rows to this many pixels; None keeps images as they are, but enlarges small ones.
    """
    rows = []
    for result in results:
        pair = to_pil(
            torch.cat([result.original, torch.ones(3, result.original.shape[1], GAP), result.reconstruction], 2)
        )
        if height is not None:
            pair = pair.resize((round(pair.width * height / pair.height), height), Image.Resampling.LANCZOS)
        else:
            times = enlargement(min(result.original.shape[1:]))
            pair = pair.resize((times * pair.width, times * pair.height), Image.Resampling.NEAREST)
        rows.append(
            (pair, f"{result.name}: original, reconstruction   PSNR {result.psnr:.2f} dB   SSIM {result.ssim:.3f}")
        )
    top = CAPTION if caption else 0
    width = max([pair.width for pair, _ in rows] + [600])
    sheet = Image.new("RGB", (width, top + sum(pair.height + CAPTION for pair, _ in rows)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((2, 3), caption, fill="black")
    for pair, text in rows:
        sheet.paste(pair, (0, top))
        draw.text((2, top + pair.height + 3), text, fill="black")
        top += pair.height + CAPTION
    return sheet
