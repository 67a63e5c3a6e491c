"""Serving the page: to this machine alone unless told otherwise, and from this machine alone in any case."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from gsqtok.app.page import CSS, THEME, page
from gsqtok.tokenizer import ImageTokenizer

# Gradio's page names a script and fonts of other servers; with this the browser asks nobody but this one.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Headers:
    """ASGI middleware that adds the headers above to every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """One request."""

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers)


def serve(
    tokenizers: Mapping[str, ImageTokenizer],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_pixels: int = 2048 * 2048,
    max_mb: float = 20,
    block: bool = True,
) -> tuple[gr.Blocks, str]:
    """Serve the page.

    Args:
        tokenizers: by label, at least one.
        host: address to listen at.
        port: None takes the first free one from 7860.
        max_pixels: larger images are shrunk to so many.
        max_mb: larger files are refused, in units of 10^6 bytes.
        block: stay until interrupted.

    Returns:
        the page (``close()`` ends it) and its address.

    Raises:
        OSError: the port is taken.
        ValueError: no tokenizer, or a limit that is not positive.
    """
    if not tokenizers:
        raise ValueError("a page needs a tokenizer")
    if max_pixels < 1 or not max_mb > 0:
        raise ValueError(f"limits must be positive, got {max_pixels} pixels and {max_mb} MB")
    middleware = [Middleware(Headers)]
    if _loopback(host):  # another name that leads here is a page of somebody else's (DNS rebinding)
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", host]))
    blocks = page(tokenizers, max_pixels, max_mb)
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
    )
    if block:
        print(f"gsqtok app: {address} (Ctrl-C ends it)", flush=True)
        blocks.block_thread()
    return blocks, address


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
