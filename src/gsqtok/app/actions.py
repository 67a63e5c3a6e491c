"""What happens on the page: each action takes what the browser sent and returns what it shows."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from torch import Tensor

from gsqtok.app import codebook, views
from gsqtok.app.kept import Kept
from gsqtok.data import BrokenImageError, decode_image, to_pil
from gsqtok.tokenizer import ImageTokenizer

MAX_DECODED = 2**26  # pixels of an uploaded image, 192 MiB as RGB: more is refused before it is decoded
NEAREST = 5  # neighbours shown of a codeword
BUDGET = 2**29  # bytes of images that are kept for all visitors together, and again of what is shown to them
GONE = "This image had to make room for those of other visitors: open it again."
CHOOSE_FIRST = "Choose a first image above"
CHOOSE_SECOND = "Choose a second image to swap with"
_DEMO = Path(__file__).parent.parent / "demo_images"
DEMO = {path.stem: path for path in sorted(_DEMO.glob("*.png"))}


@dataclass(frozen=True)
class Opened:
    """An image that the page works on.

    Attributes:
        image: at most so large as the page works with.
        size: width and height as it came.
        frames: of the file; the page works with the first.
        name: of ours, or "your image".
    """

    image: Image.Image
    size: tuple[int, int]
    frames: int
    name: str

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return 3 * self.image.width * self.image.height


@dataclass(frozen=True)
class Shown:
    """What is on the page, kept for one visitor: the image, through which tokenizer, and its tokens (h, w, G)."""

    opened: Opened
    label: str
    tokens: Tensor

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.opened.bytes + self.tokens.numel() * self.tokens.element_size()


def _announced(data: bytes) -> tuple[int, int, int]:
    """Width, height and number of frames that a file announces; zeros for what is no image."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # nothing is decoded here
    try:
        with Image.open(io.BytesIO(data)) as image:
            return *image.size, getattr(image, "n_frames", 1)
    except Exception:  # on corrupt input Pillow's readers raise nearly anything; decoding says what is wrong
        return 0, 0, 1
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _tiles(progress: gr.Progress) -> views.Progress:
    return lambda what, done, total: progress((done, total), what, unit="tiles")


def _pixel(event: gr.SelectData) -> tuple[int, int]:
    return int(event.index[0]), int(event.index[1])


def _maps(
    tokens: Tensor, window: views.Window | None, position: tuple[int, int] | None = None
) -> tuple[Image.Image, gr.Image, views.Window | None]:
    """The token maps, their closer view (hidden where there is none), and the rows and columns that it shows."""
    sheet = views.Sheet(views.shape_of(tokens))
    if window is None:
        return sheet.draw(tokens, position and _one(*position)), gr.Image(None, visible=False), None
    near, (rows, columns) = tokens[window], window
    inside = position and _one(position[0] - rows.start, position[1] - columns.start)
    view = views.Sheet(views.shape_of(near)).draw(near, inside)
    return sheet.draw(tokens, window), gr.Image(view, visible=True), window


def _one(row: int, column: int) -> views.Window:
    return slice(row, row + 1), slice(column, column + 1)


class Actions:
    """The actions of the page.

    Args:
        tokenizers: by the label that the page shows.
        max_pixels: larger images are shrunk to so many.
    """

    def __init__(self, tokenizers: Mapping[str, ImageTokenizer], max_pixels: int) -> None:
        self.tokenizers = dict(tokenizers)
        self.max_pixels = max_pixels
        self.opened: Kept[Opened] = Kept(BUDGET)
        self.shown: Kept[Shown] = Kept(BUDGET)

    def upload(self, data: bytes | None, key: str | None) -> tuple[str | None, None, Any]:
        """An uploaded file's bytes to an image; what is no image is answered on the page, and the field emptied.

        Returns:
            the image's key, the list of ours emptied, and the field for uploads.
        """
        if data is None:
            return None, None, gr.skip()
        try:
            return self._keep(data, "your image", key), None, gr.skip()
        except BrokenImageError as error:
            gr.Warning(f"This file is not shown: {str(error).rstrip('.')}. Choose another image.", duration=None)
            return None, None, None

    def choose(self, name: str | None, key: str | None) -> tuple[str | None, None]:
        """One of the package's own images by its name; returns its key, and the field for uploads emptied."""
        if name is not None and name not in DEMO:
            raise gr.Error("There is no such image here.", print_exception=False)
        return None if name is None else self._keep(DEMO[name].read_bytes(), name, key), None

    def _keep(self, data: bytes, name: str, key: str | None) -> str:
        width, height, frames = _announced(data)
        if width * height > MAX_DECODED:
            limit = f"{MAX_DECODED / 10**6:.0f} megapixels"
            raise BrokenImageError(f"{width:,} x {height:,} pixels are more than the {limit} that this page takes")
        image = decode_image(data, max_pixels=MAX_DECODED)
        opened = Opened(views.shrunk(image, self.max_pixels), image.size, frames, name)
        return self.opened.put(opened, opened.bytes, replaces=key)

    def show(
        self,
        key: str | None,
        label: str,
        before: str | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple:
        """Through the tokenizer and back; where there is no image, what was shown goes.

        Args:
            key: of the image.
            label: of the tokenizer.
            before: the key of what was shown.
            progress: Gradio's.

        Returns:
            the key of what is shown now, a line about it, the table, the slider's pair, the gallery, the token maps,
            their closer view and what it shows, the groups, and an empty position and table of neighbours.
        """
        opened = self.opened.get(key)
        if opened is None:
            if key is not None:
                gr.Warning(GONE)
            nothing = gr.Image(None, visible=False)
            return None, "", None, None, None, None, nothing, None, gr.CheckboxGroup(choices=[], value=[]), "", None
        tokenizer = self._tokenizer(label)
        progress(0, "encoding and decoding")
        try:
            seen = views.look(tokenizer, opened.image, opened.name, _tiles(progress))
        except (ValueError, RuntimeError) as error:
            raise gr.Error(f"The tokenizer could not take this image: {error}", print_exception=False) from error
        progress(0.9, "drawing")
        original, reconstruction = seen.ours.original, seen.ours.reconstruction
        pair = opened.image, to_pil(reconstruction)
        gallery = [
            (pair[1], "tokens"),
            (to_pil(seen.jpeg), "JPEG"),
            (views.error_map(original, reconstruction), "tokens: error x 4"),
            (views.error_map(original, seen.jpeg), "JPEG: error x 4"),
            *views.progressive(tokenizer, seen.ours.tokens, original),
        ]
        height, width = seen.ours.tokens.shape[:2]
        window = views.closer(views.shape_of(seen.ours.tokens), height // 2, width // 2)
        maps = _maps(seen.ours.tokens, window)
        names = [f"group {n + 1}" for n in range(seen.ours.tokens.shape[2])]
        groups = gr.CheckboxGroup(choices=names, value=names)
        table = views.metrics(seen, label)
        line = self._line(opened, seen)
        now = Shown(opened, label, seen.ours.tokens.int())
        kept = self.shown.put(now, now.bytes, replaces=before)
        return kept, line, table, pair, gallery, *maps, groups, "", None

    def _line(self, opened: Opened, seen: views.Look) -> str:
        width, height = opened.image.size
        rows, columns, groups = seen.ours.tokens.shape
        line = f"{opened.name}: {width} x {height} pixels, {rows} x {columns} positions of {groups} tokens."
        if opened.frames > 1:
            line += f" **The first of {opened.frames} frames.**"
        if opened.size != opened.image.size:
            line += (
                f" **Shrunk from {opened.size[0]} x {opened.size[1]}**: this page works with at most "
                f"{self.max_pixels / 10**6:.2g} megapixels."
            )
        return line

    def point(self, key: str | None, event: gr.SelectData) -> tuple:
        """A click on the token maps.

        Returns:
            the maps with the position framed, their closer view and what it shows, the position's name, and its
            codewords' neighbours.
        """
        shown = self._still_shown(key)
        if shown is None:
            return (gr.skip(),) * 5
        shape = views.shape_of(shown.tokens)
        found = views.Sheet(shape).position(*_pixel(event))
        if found is None:
            return (gr.skip(),) * 5
        return self._at(shown, found[:2], views.closer(shape, *found[:2]))

    def point_closer(self, key: str | None, window: views.Window | None, event: gr.SelectData) -> tuple:
        """A click on the closer view, which stays where it is; the rest as for `point`."""
        shown = self._still_shown(key)
        if shown is None or window is None:
            return (gr.skip(),) * 5
        tokens = shown.tokens
        found = views.Sheet(views.shape_of(tokens[window])).position(*_pixel(event))
        if found is None:
            return (gr.skip(),) * 5
        return self._at(shown, (found[0] + window[0].start, found[1] + window[1].start), window)

    def _at(self, shown: Shown, position: tuple[int, int], window: views.Window | None) -> tuple:
        tokens, (row, column) = shown.tokens, position
        quantizer = self._tokenizer(shown.label).quantizer
        rows = []
        try:
            for group, token in enumerate(tokens[row, column].tolist()):
                near = codebook.neighbours(quantizer, tokens[row, column], group, NEAREST)
                cells = [f"{index} ({distance:.2f})" for index, distance in near]
                rows.append([str(group + 1), str(token), *cells, *[""] * (NEAREST - len(cells))])
        except ValueError as error:
            raise gr.Error(f"No neighbours: {error}.", print_exception=False) from None
        return *_maps(tokens, window, position), f"Position: row {row + 1}, column {column + 1}", rows

    def second(self, key: str | None, other_key: str | None) -> tuple[str, Any]:
        """A line about the second image, and the button, which works once there are both; until then it says why not.

        Args:
            key: of what is shown.
            other_key: of the second image.
        """
        other = self.opened.get(other_key)
        line = f"Second: {other.name}, {other.size[0]} x {other.size[1]} pixels." if other else ""
        if self.shown.get(key) is None:
            return line, gr.Button(interactive=False, value=CHOOSE_FIRST)
        return line, gr.Button(interactive=other is not None, value="Swap and decode" if other else CHOOSE_SECOND)

    def swap(
        self,
        key: str | None,
        other_key: str | None,
        groups: list[str],
        left: float,
        top: float,
        right: float,
        bottom: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[tuple[Image.Image, str]]:
        """Two images with some of their tokens exchanged; box edges in percent. Returns a gallery of four."""
        shown, other = self._still_shown(key), self.opened.get(other_key)
        if shown is None or other is None:
            raise gr.Error("Choose a first image above and a second one here.", print_exception=False)
        tokenizer = self._tokenizer(shown.label)
        first, size = shown.tokens, shown.opened.image.size
        second_image = views.fitted(other.image, size)
        box = (left / 100, top / 100, right / 100, bottom / 100)
        progress(0, "encoding and decoding")
        told = _tiles(progress)
        second = views.encoded(tokenizer, second_image, told).int()
        chosen = [int(name.removeprefix("group ")) - 1 for name in groups]
        pair = views.swapped(first, second, chosen, box)
        ours, theirs = (views.decoded(tokenizer, tokens, size, told) for tokens in pair)
        return [
            (views.framed(shown.opened.image, box), "first"),
            (views.framed(second_image, box), "second, cut to the first's size"),
            (ours, "first, with tokens of the second"),
            (theirs, "second, with tokens of the first"),
        ]

    def plots(self, key: str | None, label: str) -> tuple:
        """Usage in the image shown (if any), where the codewords lie, and a line about the quantizer."""
        quantizer = self._tokenizer(label).quantizer
        shown = self.shown.get(key)
        tokens = shown.tokens if shown is not None and shown.label == label else None
        usage = None
        if tokens is not None and quantizer.codebook_size <= codebook.MAX_SEARCHED:
            usage = codebook.usage_plot(tokens, quantizer.codebook_size)
        sphere = codebook.sphere_plot(quantizer, tokens)
        line = (
            f"`{quantizer.name}`: {quantizer.tokens_per_position} tokens of {quantizer.codebook_size:,} codewords a "
            f"position, {quantizer.bits:g} bits."
        )
        return usage, sphere, line if sphere is not None else line + " It has no codebook to draw."

    def _still_shown(self, key: str | None) -> Shown | None:
        shown = self.shown.get(key)
        if shown is None and key is not None:
            raise gr.Error(GONE, print_exception=False)
        return shown

    def _tokenizer(self, label: str) -> ImageTokenizer:
        if label not in self.tokenizers:
            raise gr.Error("There is no such tokenizer here.", print_exception=False)
        return self.tokenizers[label]
