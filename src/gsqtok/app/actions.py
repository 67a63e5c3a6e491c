"""What happens on the page: each action takes what the browser sent and returns what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import torch
from PIL import Image

from gsqtok.app import codebook, views
from gsqtok.data import BrokenImageError, decode_image, to_pil, to_tensor
from gsqtok.tokenizer import ImageTokenizer

MAX_DECODED = 2**26  # pixels of an uploaded picture, 192 MiB as RGB: more is refused before it is decoded
NEAREST = 5  # neighbours shown of a codeword
_DEMO = Path(__file__).parent.parent / "demo_pictures"
DEMO = {path.stem: path for path in sorted(_DEMO.glob("*.png"))}


@dataclass(frozen=True)
class Opened:
    """A picture that the page works on.

    Attributes:
        picture: at most so large as the page works with.
        size: width and height as it came.
        name: of ours, or "your picture".
    """

    picture: Image.Image
    size: tuple[int, int]
    name: str


@dataclass(frozen=True)
class Shown:
    """What is on the page, kept for one visitor: the picture, through which tokenizer, and what came of it."""

    opened: Opened
    label: str
    seen: views.Look


class Actions:
    """The actions of the page.

    Args:
        tokenizers: by the label that the page shows.
        max_pixels: larger pictures are shrunk to so many.
    """

    def __init__(self, tokenizers: Mapping[str, ImageTokenizer], max_pixels: int) -> None:
        self.tokenizers = dict(tokenizers)
        self.max_pixels = max_pixels

    def upload(self, data: bytes | None) -> tuple[Opened | None, None]:
        """A file's bytes to a picture, and the list of ours emptied; what is no picture is answered on the page."""
        return None if data is None else self._open(data, "your picture"), None

    def choose(self, name: str | None) -> tuple[Opened | None, None]:
        """One of the package's own pictures by its name, and the field for uploads emptied."""
        if name is not None and name not in DEMO:
            raise gr.Error("There is no such picture here.", print_exception=False)
        return None if name is None else self._open(DEMO[name].read_bytes(), name), None

    def _open(self, data: bytes, name: str) -> Opened:
        try:
            picture = decode_image(data, max_pixels=MAX_DECODED)
        except BrokenImageError as error:
            raise gr.Error(
                f"This file is not shown: {error}. Choose another picture.",
                duration=None,
                print_exception=False,
            ) from None
        return Opened(views.shrunk(picture, self.max_pixels), picture.size, name)

    def show(self, opened: Opened | None, label: str, progress: gr.Progress = gr.Progress()) -> tuple:  # noqa: B008
        """Through the tokenizer and back.

        Returns:
            what is shown now, a line about it, the table, the slider's pair, the gallery, the token maps, the groups,
            and an empty position and table of neighbours.
        """
        if opened is None:
            return (gr.skip(),) * 9
        tokenizer = self._tokenizer(label)
        progress(0.1, "encoding and decoding")
        try:
            seen = views.look(tokenizer, opened.picture, opened.name)
        except (ValueError, RuntimeError) as error:
            raise gr.Error(f"The tokenizer could not take this picture: {error}", print_exception=False) from error
        progress(0.8, "drawing")
        original, reconstruction = seen.ours.original, seen.ours.reconstruction
        pair = opened.picture, to_pil(reconstruction)
        gallery = [
            (pair[1], "tokens"),
            (to_pil(seen.jpeg), "JPEG"),
            (views.error_map(original, reconstruction), "tokens: error x 4"),
            (views.error_map(original, seen.jpeg), "JPEG: error x 4"),
        ]
        sheet = views.Sheet(tuple(seen.ours.tokens.shape)).draw(seen.ours.tokens)
        names = [f"group {n + 1}" for n in range(seen.ours.tokens.shape[2])]
        groups = gr.CheckboxGroup(choices=names, value=names)
        table = views.figures(seen, label)
        return Shown(opened, label, seen), self._line(opened, seen), table, pair, gallery, sheet, groups, "", None

    def _line(self, opened: Opened, seen: views.Look) -> str:
        width, height = opened.picture.size
        rows, columns, groups = seen.ours.tokens.shape
        line = f"{opened.name}: {width} x {height} pixels, {rows} x {columns} positions of {groups} tokens."
        if opened.size != opened.picture.size:
            line += (
                f" **Shrunk from {opened.size[0]} x {opened.size[1]}**: this page works with at most "
                f"{self.max_pixels:,} pixels."
            )
        return line

    def point(self, shown: Shown | None, event: gr.SelectData) -> tuple:
        """A click on the token maps: the maps with the position framed, its name, and its codewords' neighbours."""
        if shown is None:
            return (gr.skip(),) * 3
        tokens = shown.seen.ours.tokens
        sheet = views.Sheet(tuple(tokens.shape))
        x, y = event.index
        found = sheet.position(int(x), int(y))
        if found is None:
            return (gr.skip(),) * 3
        row, column, _ = found
        quantizer = self._tokenizer(shown.label).quantizer
        rows = []
        try:
            for group, token in enumerate(tokens[row, column].tolist()):
                near = codebook.neighbours(quantizer, tokens[row, column], group, NEAREST)
                cells = [f"{index} ({distance:.2f})" for index, distance in near]
                rows.append([str(group + 1), str(token), *cells, *[""] * (NEAREST - len(cells))])
        except ValueError as error:
            raise gr.Error(f"No neighbours: {error}.", print_exception=False) from None
        return sheet.draw(tokens, (row, column)), f"Position: row {row + 1}, column {column + 1}", rows

    def second(self, other: Opened | None) -> str:
        """A line about the second picture."""
        return "" if other is None else f"Second: {other.name}, {other.size[0]} x {other.size[1]} pixels."

    def swap(
        self,
        shown: Shown | None,
        other: Opened | None,
        groups: list[str],
        left: float,
        top: float,
        right: float,
        bottom: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[tuple[Image.Image, str]]:
        """Two pictures with some of their tokens exchanged; box edges in percent. Returns a gallery of four."""
        if shown is None or other is None:
            raise gr.Error("Choose a first picture above and a second one here.", print_exception=False)
        tokenizer = self._tokenizer(shown.label)
        first, size = shown.seen.ours.tokens, shown.opened.picture.size
        second_picture = views.fitted(other.picture, size)
        box = (left / 100, top / 100, right / 100, bottom / 100)
        progress(0.1, "encoding")
        second = tokenizer.encode(to_tensor(second_picture)[None].to(tokenizer.device))[0].cpu()
        chosen = [int(name.removeprefix("group ")) - 1 for name in groups]
        pair = torch.stack(views.swapped(first, second, chosen, box))
        progress(0.5, "decoding")
        ours, theirs = tokenizer.decode(pair.to(tokenizer.device), size[::-1]).cpu()
        return [
            (views.framed(shown.opened.picture, box), "first"),
            (views.framed(second_picture, box), "second, cut to the first's size"),
            (to_pil(ours), "first, with tokens of the second"),
            (to_pil(theirs), "second, with tokens of the first"),
        ]

    def plots(self, shown: Shown | None, label: str) -> tuple:
        """Usage in the picture shown (if any), where the codewords lie, and a line about the quantizer."""
        quantizer = self._tokenizer(label).quantizer
        tokens = shown.seen.ours.tokens if shown is not None and shown.label == label else None
        counted = tokens is not None and quantizer.codebook_size <= codebook.MAX_SEARCHED
        usage = codebook.usage_plot(tokens, quantizer.codebook_size) if counted else None
        sphere = codebook.sphere_plot(quantizer, tokens)
        line = (
            f"`{quantizer.name}`: {quantizer.tokens_per_position} tokens of {quantizer.codebook_size:,} codewords a "
            f"position, {quantizer.bits:g} bits."
        )
        return usage, sphere, line if sphere is not None else line + " It has no codebook to draw."

    def _tokenizer(self, label: str) -> ImageTokenizer:
        if label not in self.tokenizers:
            raise gr.Error("There is no such tokenizer here.", print_exception=False)
        return self.tokenizers[label]
