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
        opened, other, shown, window = (gr.State(time_to_live=3600) for _ in range(4))
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
            table = gr.Dataframe(
                headers=["what", "bytes", "bits/px", "PSNR, dB", "SSIM"],
                interactive=False,
                elem_id="figures",
                show_label=False,
                buttons=[],
            )
            with gr.Row():
                slider = gr.ImageSlider(
                    label="Original | reconstruction", format="png", interactive=False, elem_id="slider", buttons=[]
                )
                gallery = _gallery(2, "errors")
        with gr.Tab("Tokens"):
            gr.Markdown(
                "One map a group, a colour for each codeword. **Click a position** for its codewords' neighbours. "
                f"Of a large image, the {CLOSER} x {CLOSER} positions in the frame are below, larger."
            )
            maps = gr.Image(show_label=False, format="png", interactive=False, elem_id="maps", buttons=[])
            closer = gr.Image(
                show_label=False, format="png", interactive=False, visible=False, elem_id="closer", buttons=[]
            )
            position = gr.Markdown(elem_id="position")
            near = gr.Dataframe(
                headers=["group", "codeword", *(f"nearest {n + 1}" for n in range(NEAREST))],
                interactive=False,
                elem_id="neighbours",
                label="Nearest codewords (distance of the values that the decoder gets)",
                buttons=[],
            )
        with gr.Tab("Swap"):
            gr.Markdown("Exchange tokens of two images and decode both: some groups, everywhere or in a region.")
            with gr.Row():
                other_demo = gr.Dropdown(list(DEMO), value=None, label="Second image", elem_id="other-demo")
                other_upload = _upload("Or an image of yours", "other-upload")
            other_line = gr.Markdown(elem_id="other-line")
            groups = gr.CheckboxGroup([], label="Groups to swap", elem_id="groups")
            with gr.Row():
                edges = [
                    gr.Slider(0, 100, value=value, step=1, label=f"{name}, %")
                    for name, value in (("Left", 25), ("Top", 25), ("Right", 75), ("Bottom", 75))
                ]
            button = gr.Button(CHOOSE_SECOND, variant="primary", interactive=False, elem_id="swap")
            results = _gallery(4, "swapped")
        with gr.Tab("Codebook"):
            about = gr.Markdown()
            with gr.Row():
                usage = gr.Image(show_label=False, format="png", interactive=False, elem_id="usage", buttons=[])
                sphere = gr.Image(show_label=False, format="png", interactive=False, elem_id="sphere", buttons=[])

        queued = _HIDDEN | {"concurrency_id": "network", "concurrency_limit": 1}  # one image at a time
        quiet = _HIDDEN | {"show_progress": "hidden"}
        tokens = [maps, closer, window]
        views = [shown, line, table, slider, gallery, *tokens, groups, position, near]
        for event in (
            upload.upload(do.upload, [upload, opened], [opened, demo, upload], **quiet).success,
            demo.input(do.choose, [demo, opened], [opened, upload], **quiet).success,
            blocks.load(do.choose, [demo, opened], [opened, upload], **quiet).success,
            label.input,
        ):
            done = event(do.show, [opened, label, shown], views, show_progress_on=[line, slider], **queued)
            done.success(do.plots, [shown, label], [usage, sphere, about], **quiet)
        maps.select(do.point, shown, [*tokens, position, near], **quiet)
        closer.select(do.point_closer, [shown, window], [*tokens, position, near], **quiet)
        for event in (
            other_upload.upload(do.upload, [other_upload, other], [other, other_demo, other_upload], **quiet),
            other_demo.input(do.choose, [other_demo, other], [other, other_upload], **quiet),
        ):
            event.success(do.second, other, [other_line, button], **quiet)
        button.click(do.swap, [shown, other, groups, *edges], results, **queued)
    return blocks.queue(max_size=32)


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
