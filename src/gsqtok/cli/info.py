"""gsqtok info."""

from __future__ import annotations

from pathlib import Path

from gsqtok.cli.options import describe_tokens, print_rows


def info(model: str | None, *, allow_code: bool = False) -> None:
    """Say what a tokenizer, or a file of tokens, is.

    Args:
        model: a tokenizer (its folder, a run's folder, a published checkpoint, a hub name; default: the one inside the
            package), or a file written by gsqtok encode

    Example:
          gsqtok info
          gsqtok info runs/mine
          gsqtok info tokens.npz
    """
    print_rows(_archive(model) if model and Path(model).suffix == ".npz" else _tokenizer(model, allow_code))


def _tokenizer(source: str | None, allow_code: bool) -> list[tuple[str, str]]:
    from gsqtok.tokenizer import ImageTokenizer

    tokenizer = ImageTokenizer.from_pretrained(source, allow_code=allow_code)
    quantizer = tokenizer.quantizer
    encoder, decoder, codebook = (
        sum(p.numel() for p in part.parameters()) / 1e6 for part in (tokenizer.encoder, tokenizer.decoder, quantizer)
    )
    return [
        ("tokenizer", source or "the one inside the package"),
        ("networks", tokenizer.config.summary()),
        ("tokens", describe_tokens(tokenizer)),
        ("quantizer", quantizer.name),
        ("latent channels", f"{quantizer.dim}"),
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
