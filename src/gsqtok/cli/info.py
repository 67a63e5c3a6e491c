"""gsqtok info."""

from __future__ import annotations

from pathlib import Path

from gsqtok.cli.options import MODEL, console, parser


def main(argv: list[str]) -> None:
    """Print what a tokenizer, or a file of tokens, is."""
    p = parser(
        "info",
        "Say what a tokenizer, or a file of tokens, is.",
        "  gsqtok info\n  gsqtok info runs/mine\n  gsqtok info tokens.npz",
    )
    p.add_argument("model", nargs="?", metavar="MODEL", help=f"{MODEL}; or a file written by gsqtok encode")
    args = p.parse_args(argv)
    rows = _archive(args.model) if args.model and Path(args.model).suffix == ".npz" else _tokenizer(args.model)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.print(f"{name:<{width}}  {value}")


def _tokenizer(source: str | None) -> list[tuple[str, str]]:
    from gsqtok.tokenizer import ImageTokenizer

    tokenizer = ImageTokenizer.from_pretrained(source)
    quantizer = tokenizer.quantizer
    encoder, decoder, codebook = (
        sum(p.numel() for p in part.parameters()) / 1e6 for part in (tokenizer.encoder, tokenizer.decoder, quantizer)
    )
    return [
        ("tokenizer", source or "the one inside the package"),
        ("down-sampling factor", f"{tokenizer.factor}"),
        ("quantizer", quantizer.name),
        ("latent channels", f"{quantizer.dim}"),
        ("tokens per position", f"{quantizer.tokens_per_position}, each of {quantizer.codebook_size:,} codewords"),
        ("bits per position", f"{quantizer.bits:g}"),
        ("bits per pixel", f"{tokenizer.bits_per_pixel:.4g}"),
        ("parameters", f"encoder {encoder:.2f}M, decoder {decoder:.2f}M, quantizer {codebook:.2f}M"),
        ("quantizer options", ", ".join(f"{k}={v}" for k, v in quantizer.config.items() if k not in ("name", "dim"))),
        ("fingerprint", tokenizer.fingerprint()),
    ]


def _archive(path: str) -> list[tuple[str, str]]:
    from gsqtok.tokens import TokenArchive

    archive = TokenArchive(path)
    pixels = sum(h * w for h, w in archive.sizes.values())
    return [
        ("file of tokens", path),
        ("images", f"{len(archive):,}"),
        ("pixels", f"{pixels:,}"),
        ("codewords per token", f"{archive.codebook_size:,}"),
        ("made by tokenizer", archive.fingerprint),
        ("bytes on disk", f"{Path(path).stat().st_size:,}"),
    ]
