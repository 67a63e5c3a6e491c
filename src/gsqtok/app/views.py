"""What the page shows, from images and tokens: plain functions that know nothing of a browser."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gsqtok.data import to_pil, to_tensor
from gsqtok.evaluation.codecs import Codec
from gsqtok.evaluation.reconstruct import Reconstruction, reconstruct
from gsqtok.evaluation.report.images import token_colours
from gsqtok.evaluation.similarity import similarity
from gsqtok.tokenizer import ImageTokenizer

WHOLE = 512 * 512  # pixels of an image that goes through the networks at once; a larger one goes in tiles
TILE = 256  # positions a side
MAP = 256  # pixels of the longer side of a token map, about
WIDEST = 1400  # pixels that maps beside each other take, unless one map takes more
GAP = 8  # pixels between token maps
CAPTION = 18  # pixels above each
READABLE = 4  # pixels of a token's side, at least, where one can see and click a single token
CLOSER = 32  # positions a side of the closer view, where maps of the whole have smaller tokens
Progress = Callable[[str, int, int], None]  # gets what is done ("encoding" or "decoding"), tiles done, and all
Window = tuple[slice, slice]  # rows and columns of a grid
Box = tuple[float, float, float, float]


def shrunk(image: Image.Image, max_pixels: int) -> Image.Image:
    """The image at no more than ``max_pixels``, its proportions kept as far as whole pixels can; never enlarged."""
    width, height = image.size
    if width * height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (width * height))
    width, height = max(1, int(width * scale)), max(1, int(height * scale))
    # of a strip the short side is 1 whatever the scale
    size = (min(width, max_pixels // height), height) if width >= height else (width, min(height, max_pixels // width))
    return image.resize(size, Image.Resampling.LANCZOS)


@dataclass
class Look:
    """An image, what the tokenizer made of it, and the JPEG of the same size.

    Attributes:
        ours: original, reconstruction, tokens and metrics.
        bits: of the tokens, log2(V) each.
        jpeg: the image out of the JPEG file.
        jpeg_bits: of that file; more than ``bits`` where even the lowest quality needs more.
        jpeg_psnr: in dB.
        jpeg_ssim: NaN for sides under 11 pixels.
    """

    ours: Reconstruction
    bits: float
    jpeg: Tensor
    jpeg_bits: int
    jpeg_psnr: float
    jpeg_ssim: float


def tile_for(size: tuple[int, int]) -> int | None:
    """What ``ImageTokenizer.encode`` takes as tile for an image of this width and height: None for a small one."""
    return TILE if size[0] * size[1] > WHOLE else None


def look(tokenizer: ImageTokenizer, image: Image.Image, name: str, progress: Progress | None = None) -> Look:
    """Through the tokenizer and back, in tiles if it is large, and through JPEG at no more bits."""
    pixels = to_tensor(image)[None]
    (ours,) = reconstruct(tokenizer, [{"image": pixels, "keys": [name]}], tile_for(image.size), progress)
    bits = ours.tokens.shape[0] * ours.tokens.shape[1] * tokenizer.quantizer.bits
    codec = Codec("jpeg", bits / (image.width * image.height))
    file = codec.fit(image)
    jpeg = to_tensor(Image.open(io.BytesIO(file)))
    measured = similarity(jpeg[None], pixels)
    return Look(ours, bits, jpeg, 8 * len(file), measured["psnr"].item(), measured["ssim"].item())


def encoded(tokenizer: ImageTokenizer, image: Image.Image, progress: Progress | None = None) -> Tensor:
    """Tokens (h, w, G) of an image, on the CPU; in tiles if it is large."""
    tile = tile_for(image.size)
    pixels = to_tensor(image)[None].to(tokenizer.input_device(tile))
    return tokenizer.encode(pixels, tile=tile, progress=progress and partial(progress, "encoding"))[0].cpu()


def decoded(
    tokenizer: ImageTokenizer, tokens: Tensor, size: tuple[int, int], progress: Progress | None = None
) -> Image.Image:
    """The image, ``size`` (width, height), of tokens (h, w, G); in tiles if it is large."""
    tile = tile_for(size)
    tokens = tokens[None].to(tokenizer.input_device(tile))
    return to_pil(
        tokenizer.decode(tokens, size=size[::-1], tile=tile, progress=progress and partial(progress, "decoding"))[0]
    )


def progressive(tokenizer: ImageTokenizer, tokens: Tensor, original: Tensor) -> list[tuple[Image.Image, str]]:
    """What the first 1, 2, 4, ... of nested groups (h, w, G) decode to, and what to write below; nothing without them.

    Args:
        tokenizer: that made them.
        tokens: (h, w, G).
        original: (3, H, W) in [-1, 1], what the images are compared with.
    """
    height, width = original.shape[1:]
    groups = tokens.shape[2] if tokenizer.quantizer.nested is not None else 1
    found = []
    for k in (2**power for power in range((groups - 1).bit_length())):
        image = decoded(tokenizer, tokens[..., :k], (width, height))
        bits = tokens[..., 0].numel() * tokenizer.quantizer.bits_of(k) / (height * width)
        psnr = similarity(to_tensor(image)[None], original[None])["psnr"].item()
        found.append((image, f"first {k} of {groups} groups: {bits:.3f} bits/px, {psnr:.2f} dB"))
    return found


def metrics(seen: Look, label: str) -> list[list[str]]:
    """Rows for a table: what, bytes, bits/px, PSNR in dB, SSIM."""
    pixels = seen.ours.original[0].numel()
    rows = [
        (f"tokens of {label}", seen.bits, seen.ours.psnr, seen.ours.ssim),
        ("JPEG of the same size", seen.jpeg_bits, seen.jpeg_psnr, seen.jpeg_ssim),
    ]
    if seen.jpeg_bits > seen.bits:
        rows[1] = ("JPEG at its lowest quality", *rows[1][1:])
    return [
        [
            what,
            f"{math.ceil(bits / 8):,}",
            f"{bits / pixels:.3f}",
            f"{psnr:.2f}",
            "too small" if math.isnan(ssim) else f"{ssim:.3f}",
        ]
        for what, bits, psnr, ssim in rows
    ]


def error_map(original: Tensor, reconstruction: Tensor, gain: float = 4.0) -> Image.Image:
    """The difference of two images (3, H, W) in [-1, 1], each channel by itself: black is none.

    Args:
        original: one.
        reconstruction: the other.
        gain: 8-bit steps shown for one of difference.
    """
    return to_pil((original - reconstruction).abs() * gain - 1)


def shape_of(tokens: Tensor) -> tuple[int, int, int]:
    """Rows, columns and groups of tokens (h, w, G)."""
    rows, columns, groups = tokens.shape
    return rows, columns, groups


@dataclass(frozen=True)
class Sheet:
    """Where the token maps of all groups lie on one image.

    Attributes:
        shape: rows h, columns w and groups G of the tokens.
    """

    shape: tuple[int, int, int]

    @property
    def cell(self) -> int:
        """Pixels of a token's side."""
        return max(1, round(MAP / max(self.shape[:2])))

    @property
    def columns(self) -> int:
        """Maps side by side."""
        return min(4, self.shape[2], max(1, WIDEST // (self.shape[1] * self.cell + GAP)))

    def corner(self, group: int) -> tuple[int, int]:
        """Left and top pixel of a group's map."""
        row, column = divmod(group, self.columns)
        return column * (self.shape[1] * self.cell + GAP), row * (self.shape[0] * self.cell + GAP + CAPTION) + CAPTION

    def position(self, x: int, y: int) -> tuple[int, int, int] | None:
        """Row, column and group under a pixel; None beside the maps."""
        height, width, groups = self.shape
        for group in range(groups):
            left, top = self.corner(group)
            row, column = (y - top) // self.cell, (x - left) // self.cell
            if 0 <= row < height and 0 <= column < width:
                return row, column, group
        return None

    def draw(self, tokens: Tensor, framed: Window | None = None) -> Image.Image:
        """The maps: (h, w, G) integers, a colour for each codeword, the same one in all groups.

        Args:
            tokens: of ``shape``.
            framed: rows and columns to frame.
        """
        height, width, groups = self.shape
        right, bottom = self.corner(groups - 1)
        right = self.corner(self.columns - 1)[0]
        sheet = Image.new("RGB", (right + width * self.cell, bottom + height * self.cell), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
        for group in range(groups):
            left, top = self.corner(group)
            colours = Image.fromarray(token_colours(tokens[:, :, group].numpy()))
            size = (width * self.cell, height * self.cell)
            sheet.paste(colours.resize(size, Image.Resampling.NEAREST), (left, top))
            draw.text((left, top - CAPTION), f"group {group + 1}", fill="black", font=font)
            if framed is not None:
                rows, columns = framed
                x, y = left + columns.start * self.cell, top + rows.start * self.cell
                x_end, y_end = left + columns.stop * self.cell, top + rows.stop * self.cell
                draw.rectangle((x - 2, y - 2, x_end + 1, y_end + 1), outline="black")
                draw.rectangle((x - 1, y - 1, x_end, y_end), outline="white")
        return sheet


def closer(shape: tuple[int, int, int], row: int, column: int) -> Window | None:
    """Rows and columns about a position that a closer view shows, all of the grid's; None where it needs none.

    Args:
        shape: rows, columns and groups of the tokens.
        row: the position's.
        column: the position's.
    """
    if Sheet(shape).cell >= READABLE:
        return None

    def about(at: int, size: int) -> slice:
        side = min(CLOSER, size)
        start = min(max(0, at - side // 2), size - side)
        return slice(start, start + side)

    return about(row, shape[0]), about(column, shape[1])


def region(box: Box, shape: tuple[int, int]) -> Window:
    """Rows and columns of a grid that a box covers; a position belongs to it with its centre.

    Args:
        box: left, top, right, bottom as shares of width and height, in [0, 1]; in any order.
        shape: rows and columns of the grid.
    """
    left, right = sorted((box[0], box[2]))
    top, bottom = sorted((box[1], box[3]))
    height, width = shape
    rows, columns = (
        slice(*(min(n, max(0, math.ceil(edge * n - 0.5))) for edge in edges))
        for edges, n in (((top, bottom), height), ((left, right), width))
    )
    return rows, columns


def swapped(first: Tensor, second: Tensor, groups: list[int], box: Box) -> tuple[Tensor, Tensor]:
    """Both grids of tokens with those of some groups, inside a box, exchanged.

    Args:
        first: (h, w, G) integers.
        second: the same shape.
        groups: which, from 0.
        box: as `region` takes it; (0, 0, 1, 1) is everything.

    Raises:
        ValueError: grids of different shapes, or a group that is not there.
    """
    if first.shape != second.shape:
        raise ValueError(f"tokens of {tuple(first.shape)} and {tuple(second.shape)} cannot be swapped")
    if wrong := [group for group in groups if not 0 <= group < first.shape[2]]:
        raise ValueError(f"there is no group {wrong[0] + 1}: these tokens have {first.shape[2]}")
    chosen = torch.zeros(first.shape, dtype=torch.bool)
    rows, columns = region(box, (first.shape[0], first.shape[1]))
    chosen[rows, columns] = torch.isin(torch.arange(first.shape[2]), torch.tensor(groups, dtype=torch.int64))
    return torch.where(chosen, second, first), torch.where(chosen, first, second)


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scaled to cover ``size`` (width, height) and cut to it, centre kept: two images get grids of one shape."""
    if image.size == size:
        return image
    wide = image.width * size[1] > image.height * size[0]  # than the size wanted
    width = image.height * size[0] / size[1] if wide else image.width
    height = image.height if wide else image.width * size[1] / size[0]
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return image.resize(size, Image.Resampling.LANCZOS, box=box)


def framed(image: Image.Image, box: Box) -> Image.Image:
    """The image with a box (shares of width and height) drawn on it."""
    image = image.copy()
    left, right = sorted((box[0] * image.width, box[2] * image.width))
    top, bottom = sorted((box[1] * image.height, box[3] * image.height))
    draw = ImageDraw.Draw(image)
    for inset, colour in ((0, "black"), (1, "white"), (2, "white"), (3, "black")):
        if right - left > 2 * inset + 1 and bottom - top > 2 * inset + 1:
            draw.rectangle((left + inset, top + inset, right - 1 - inset, bottom - 1 - inset), outline=colour)
    return image
