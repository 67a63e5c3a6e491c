"""What the server refuses before Gradio sees it, and the headers of its answers (ASGI middleware)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote, urlsplit

App = Callable[..., Awaitable[None]]
Scope = MutableMapping[str, Any]

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
_ADDRESS = re.compile(r"(?:file|proxy)=\W*(?:[a-z][a-z0-9+.-]*:|//|\\\\)|proxy=", re.IGNORECASE)


class Headers:
    """Adds the headers above to every answer."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """One request."""

        async def with_headers(message: Scope) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers)


class AddressGuard:
    """Refuses to fetch from an address: Gradio's ``file=`` and ``proxy=`` would ask other servers for it."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] == "http" and _names_an_address(scope):
            await _refuse(send, 403, b"addresses are not fetched")
            return
        await self.app(scope, receive, send)


class UploadGuard:
    """Takes uploads from this page alone, and one file in a request."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            await _refuse(send, 403, b"requests of other sites are refused")
            return
        if not scope["path"].rstrip("/").endswith("/upload"):
            await self.app(scope, receive, send)
            return
        await self._one_file(scope, receive, send, headers.get("content-type", ""))

    async def _one_file(self, scope: Scope, receive: Any, send: Any, content_type: str) -> None:
        found = re.search(r'boundary="?([^";]+)', content_type)
        boundary = b"--" + found[1].encode("latin-1") if found else b""
        seen, tail, refused = 0, b"", False

        async def counted() -> Scope:
            nonlocal seen, tail, refused
            message: Scope = await receive()
            if boundary and message["type"] == "http.request":
                body = tail + message.get("body", b"")
                seen += body.count(boundary)
                last = body.rfind(boundary)  # counted: what is kept must not hold it again
                tail = body[max(last + len(boundary), len(body) - len(boundary) + 1) :]
                if seen > 2:  # the one before the file and the one behind it
                    refused = True
                    return {"type": "http.disconnect"}
            return message

        async def unless_refused(message: Scope) -> None:
            if not refused:
                await send(message)

        try:
            await self.app(scope, counted, unless_refused)
        except Exception:
            if not refused:
                raise
        if refused:
            await _refuse(send, 413, b"one file in a request, please")


def _names_an_address(scope: Scope) -> bool:
    text = f"{scope.get('raw_path', b'').decode('latin-1')} {scope['path']}"
    for _ in range(4):  # encoded once, twice, ...
        if _ADDRESS.search(text):
            return True
        text = unquote(text)
    return bool(_ADDRESS.search(text))


async def _refuse(send: Any, status: int, reason: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": reason})
