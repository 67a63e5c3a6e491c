"""gsqtok app."""

from __future__ import annotations

from pathlib import Path

from gsqtok.cli.options import MODEL, device, parser


def main(argv: list[str]) -> None:
    """Serve a page where images go through tokenizers."""
    p = parser(
        "app",
        "A page in the browser: an image through a tokenizer and back, beside JPEG of the same size, with its tokens, "
        "their neighbours, swaps between two images, and the codebook.",
        "  gsqtok app\n  gsqtok app runs/mine runs/other --port 8000",
    )
    p.add_argument("model", nargs="*", metavar="MODEL", help=MODEL)
    p.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    p.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    p.add_argument("--port", type=int, help="(default: the first free one from 7860)")
    p.add_argument(
        "--max-pixels",
        type=int,
        default=2048 * 2048,
        help="larger images are shrunk to so many (default: 4194304, 2048 x 2048)",
    )
    p.add_argument("--max-mb", type=float, default=20, help="larger files are refused (default: 20)")
    args = p.parse_args(argv)

    try:
        from gsqtok.app.serve import serve
    except ImportError as error:
        if error.name and error.name.split(".")[0] not in ("gradio", "matplotlib", "starlette"):
            raise
        raise ImportError("the page needs Gradio: pip install 'gsqtok[app]'") from error
    from gsqtok.tokenizer import ImageTokenizer

    where = device(args)
    tokenizers = {}
    for source in args.model or [None]:
        label = Path(source).name or source if source else "embedded"
        label = source if label in tokenizers else label
        tokenizers[label] = ImageTokenizer.from_pretrained(source).to(where).eval()
    serve(tokenizers, host=args.host, port=args.port, max_pixels=args.max_pixels, max_mb=args.max_mb)
