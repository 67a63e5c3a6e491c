"""gsqtok export."""

from __future__ import annotations

from gsqtok.cli.options import MODEL, console, parser


def main(argv: list[str]) -> None:
    """Export a tokenizer to ONNX or torch.export, and verify it."""
    p = parser(
        "export",
        "A tokenizer as graphs that run without this package: encoder (images -> tokens, latent) and decoder "
        "(tokens -> images), verified against it. ONNX needs: pip install 'gsqtok[onnx]'.",
        "  gsqtok export runs/mine -o exported/\n  gsqtok export -o exported/ --format pt2",
    )
    p.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)
    p.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the graphs go")
    p.add_argument("--format", choices=("onnx", "pt2"), default="onnx", help="pt2 is torch.export's (default: onnx)")
    args = p.parse_args(argv)

    from pathlib import Path

    from gsqtok.export.export import export
    from gsqtok.tokenizer import ImageTokenizer

    result = export(ImageTokenizer.from_pretrained(args.model), args.output, args.format)
    for name in ("encoder", "decoder"):
        path = Path(args.output) / f"{name}.{args.format}"
        console.print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")
    sizes = ", ".join("x".join(map(str, size)) for size in result.sizes)
    console.print(f"verified in {result.runtime}, batches of {sizes} pixels:")
    console.print(f"  tokens    {result.tokens - result.tokens_differing} of {result.tokens} equal")
    console.print(f"  latents   within {result.latent_error:.1e}")
    console.print(f"  images  within {result.image_error:.1e}")
