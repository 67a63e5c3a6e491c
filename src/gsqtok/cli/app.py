"""gsqtok app."""

from __future__ import annotations

from pathlib import Path

from gsqtok.cli.options import console, resolve_device


def app(
    models: list[str] = [],  # noqa: B006 (only read)
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_pixels: int = 2048 * 2048,
    max_mb: float = 20,
    device: str | None = None,
) -> None:
    """Serve a page in the browser to look at images and their tokens.

    An image goes through a tokenizer and back, beside JPEG of the same size, with its tokens, their neighbours, swaps
    between two images, and the codebook.

    Args:
        models: tokenizers (folders, runs, published checkpoints, hub names; default: the one inside the package)
        host: address to listen at; the default is this machine alone
        port: to listen at (default: the first free one from 7860)
        max_pixels: larger images are shrunk to so many; the default is 2048 x 2048
        max_mb: larger files are refused

    Example:
          gsqtok app
          gsqtok app runs/mine runs/other --port 8000
    """
    from gsqtok.app.serve import serve
    from gsqtok.tokenizer import ImageTokenizer

    where = resolve_device(device)
    sources: dict[str, str | None] = {} if models else {"embedded": None}
    for source in models:
        label = Path(source).name or source
        sources[source if label in sources else label] = source
    tokenizers = {label: ImageTokenizer.from_pretrained(source).to(where).eval() for label, source in sources.items()}
    page, address = serve(tokenizers, host=host, port=port, max_pixels=max_pixels, max_mb=max_mb)
    console.print(f"gsqtok app: {address} (Ctrl-C ends it)")
    page.block_thread()
