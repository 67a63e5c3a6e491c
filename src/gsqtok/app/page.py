"""The page itself, of Gradio's own components; nothing on it comes from another server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from gsqtok.app.actions import CHOOSE_SECOND, DEMO, MAX_DECODED, NEAREST, Actions
from gsqtok.app.views import CLOSER
from gsqtok.tokenizer import ImageTokenizer

TITLE = "gsqtok"
_FONT = ("system-ui", "sans-serif")
_MONO = ("ui-monospace", "monospace")
THEME = gr.themes.Default(font=_FONT, font_mono=_MONO)  # a plain name is not fetched from anywhere
CSS = """
.gradio-container { max-width: 1180px !important; width: 100% !important; margin: 0 auto !important; }
#errors .grid-wrap, #swapped .grid-wrap { max-height: none !important; }
#maps img, #closer img { image-rendering: pixelated; cursor: crosshair; }
"""
_HIDDEN: dict[str, Any] = {"api_visibility": "private"}  # of events: the page is for people
_QUEUED = _HIDDEN | {"concurrency_id": "network", "concurrency_limit": 1}  # one image at a time
_QUIET = _HIDDEN | {"show_progress": "hidden"}


def page(tokenizers: Mapping[str, ImageTokenizer], max_pixels: int, max_mb: float) -> gr.Blocks:
    """The page, not yet served.

    Args:
        tokenizers: by label, at least one; the first is chosen.
        max_pixels: larger images are shrunk to so many, and the page says so.
        max_mb: the size of files, in units of 10^6 bytes, that the server takes.
    """
    do = Actions(tokenizers, max_pixels)
    labels = list(tokenizers)
    # uploads and results are temporary files: gone an hour after they came
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as blocks:
        opened, shown = gr.State(time_to_live=3600), gr.State(time_to_live=3600)
        gr.Markdown(
            "# gsqtok\nAn image as discrete tokens, and back. "
            f"Files of up to {max_mb:g} MB and {MAX_DECODED // 10**6} megapixels are taken; images of more than "
            f"{max_pixels / 10**6:.2g} megapixels are shrunk to that. Large ones go through in tiles, at full "
            "resolution."
        )
        with gr.Row():
            with gr.Column():
                label = gr.Dropdown(labels, value=labels[0], label="Tokenizer", elem_id="tokenizer")
                demo = gr.Dropdown(list(DEMO), value=next(iter(DEMO)), label="One of our images", elem_id="demo")
            upload = _upload("Or an image of yours", "upload")
        line = gr.Markdown(elem_id="line")
        with gr.Tab("Reconstruction"):
            table, slider, gallery = _reconstruction()
        with gr.Tab("Tokens"):
            maps, position = _tokens(do, shown)
        with gr.Tab("Swap"):
            groups, swap_is_possible = _swap(do, shown)
        with gr.Tab("Codebook"):
            about = gr.Markdown()
            with gr.Row():
                usage, sphere = _image("usage"), _image("sphere")

        results = [shown, line, table, slider, gallery, *maps, groups, *position]
        for event in (
            upload.upload(do.upload, [upload, opened], [opened, demo, upload], **_QUIET).success,
            demo.input(do.choose, [demo, opened], [opened, upload], **_QUIET).success,
            blocks.load(do.choose, [demo, opened], [opened, upload], **_QUIET).success,
            label.input,
        ):
            done = event(do.show, [opened, label, shown], results, show_progress_on=[line, slider], **_QUEUED)
            done.success(do.plots, [shown, label], [usage, sphere, about], **_QUIET)
            done.success(*swap_is_possible, **_QUIET)
    return blocks.queue(max_size=32)


def _reconstruction() -> tuple[gr.Dataframe, gr.ImageSlider, gr.Gallery]:
    """The tab's table of metrics, its slider and its gallery."""
    table = gr.Dataframe(
        headers=["what", "bytes", "bits/px", "PSNR, dB", "SSIM"],
        interactive=False,
        elem_id="metrics",
        show_label=False,
        buttons=[],
    )
    with gr.Row():
        slider = gr.ImageSlider(
            label="Original | reconstruction", format="png", interactive=False, elem_id="slider", buttons=[]
        )
        gallery = _gallery(2, "errors")
    return table, slider, gallery


def _tokens(do: Actions, shown: gr.State) -> tuple[list[Any], list[Any]]:
    """The tab's token maps, their closer view and the window that it shows; the position clicked and its neighbours."""
    gr.Markdown(
        "One map a group, a colour for each codeword. **Click a position** for its codewords' neighbours. "
        f"Of a large image, the {CLOSER} x {CLOSER} positions in the frame are below, larger."
    )
    window = gr.State(time_to_live=3600)
    maps, closer = _image("maps"), _image("closer", visible=False)
    position = gr.Markdown(elem_id="position")
    near = gr.Dataframe(
        headers=["group", "codeword", *(f"nearest {n + 1}" for n in range(NEAREST))],
        interactive=False,
        elem_id="neighbours",
        label="Nearest codewords (distance of the values that the decoder gets)",
        buttons=[],
    )
    maps.select(do.point, shown, [maps, closer, window, position, near], **_QUIET)
    closer.select(do.point_closer, [shown, window], [maps, closer, window, position, near], **_QUIET)
    return [maps, closer, window], [position, near]


def _swap(do: Actions, shown: gr.State) -> tuple[gr.CheckboxGroup, tuple[Any, ...]]:
    """The tab's choice of groups, and the event that makes its button work, or say why it does not."""
    gr.Markdown("Exchange tokens of two images and decode both: some groups, everywhere or in a region.")
    other = gr.State(time_to_live=3600)
    with gr.Row():
        demo = gr.Dropdown(list(DEMO), value=None, label="Second image", elem_id="other-demo")
        upload = _upload("Or an image of yours", "other-upload")
    line = gr.Markdown(elem_id="other-line")
    groups = gr.CheckboxGroup([], label="Groups to swap", elem_id="groups")
    with gr.Row():
        edges = [
            gr.Slider(0, 100, value=value, step=1, label=f"{name}, %")
            for name, value in (("Left", 25), ("Top", 25), ("Right", 75), ("Bottom", 75))
        ]
    button = gr.Button(CHOOSE_SECOND, variant="primary", interactive=False, elem_id="swap")
    results = _gallery(4, "swapped")
    swap_is_possible = do.second, [shown, other], [line, button]
    for event in (
        upload.upload(do.upload, [upload, other], [other, demo, upload], **_QUIET),
        demo.input(do.choose, [demo, other], [other, upload], **_QUIET),
    ):
        event.success(*swap_is_possible, **_QUIET)
    button.click(do.swap, [shown, other, groups, *edges], results, **_QUEUED)
    return groups, swap_is_possible


def _image(name: str, *, visible: bool = True) -> gr.Image:
    return gr.Image(show_label=False, format="png", interactive=False, visible=visible, elem_id=name, buttons=[])


def _gallery(columns: int, name: str) -> gr.Gallery:
    """Images beside each other, whole."""
    return gr.Gallery(
        show_label=False,
        columns=columns,
        format="png",
        interactive=False,
        elem_id=name,
        object_fit="contain",
        height="auto",
        buttons=[],
    )


def _upload(label: str, name: str) -> gr.File:
    """A field for one file, handed on as bytes: Gradio opens nothing itself but what was uploaded to it."""
    field = gr.File(label=label, type="binary", file_types=["image"], height=170, elem_id=name)

    async def uploaded_only(path: str | Path | None) -> str | None:
        """Gradio has checked a path by now, but would fetch an address."""
        if path is None:
            return None
        if "://" in str(path):
            raise gr.Error("Addresses are not fetched: upload the file.", print_exception=False)
        return str(path)

    # on the field itself: for a subclass Gradio would write a stub file into this package
    field.async_move_resource_to_block_cache = uploaded_only  # type: ignore[method-assign, assignment]
    return field
