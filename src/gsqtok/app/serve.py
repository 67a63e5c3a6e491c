"""Serving the page: to this machine alone unless told otherwise, and from this machine alone in any case."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from gsqtok.app.guard import AddressGuard, Headers, UploadGuard
from gsqtok.app.page import CSS, THEME, page
from gsqtok.tokenizer import ImageTokenizer


def serve(
    tokenizers: Mapping[str, ImageTokenizer],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_pixels: int = 2048 * 2048,
    max_mb: float = 20,
) -> tuple[gr.Blocks, str]:
    """Serve the page, in a thread of its own.

    Args:
        tokenizers: by label, at least one.
        host: address to listen at.
        port: None takes the first free one from 7860.
        max_pixels: larger images are shrunk to so many.
        max_mb: larger files are refused, in units of 10^6 bytes.

    Returns:
        the page (``block_thread()`` stays until Ctrl-C, ``close()`` ends it) and its address.

    Raises:
        OSError: the port is taken.
        ValueError: no tokenizer, or a limit that is not positive.
    """
    if not tokenizers:
        raise ValueError("a page needs a tokenizer")
    if max_pixels < 1 or not max_mb > 0:
        raise ValueError(f"limits must be positive, got {max_pixels} pixels and {max_mb} MB")
    middleware = [Middleware(Headers), Middleware(AddressGuard), Middleware(UploadGuard)]
    if _loopback(host):  # another name that leads here is a page of somebody else's (DNS rebinding)
        middleware.insert(1, Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", host]))
    blocks = page(tokenizers, max_pixels, max_mb)
    # launch, not mount_gradio_app: a mounted page does not check which files of this machine a browser may name
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        allowed_paths=[],
        max_file_size=int(max_mb * 10**6),
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        footer_links=[],
        theme=THEME,
        css=CSS,
        app_kwargs={"middleware": middleware, "docs_url": None, "redoc_url": None, "openapi_url": None},
        _frontend=False,  # else it asks itself for its page, and gives up where a busy machine takes 3 s to answer
    )
    return blocks, address


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
