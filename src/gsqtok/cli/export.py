"""gsqtok export."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gsqtok.cli.options import check_output_folder, console


def export(model: str | None, *, output: str, format: Literal["onnx", "pt2"] = "onnx") -> None:
    """Export a tokenizer to ONNX or torch.export, and verify it.

    Writes graphs that run without this package: an encoder (images -> tokens, latent) and a decoder (tokens -> images).
    ONNX needs: pip install 'gsqtok[onnx]'.

    Args:
        output: the folder for the graphs
        format: onnx, or pt2, which is torch.export's

    Example:
          gsqtok export runs/mine -o exported/
          gsqtok export -o exported/ --format pt2
    """
    from gsqtok.export import export as graphs
    from gsqtok.tokenizer import ImageTokenizer

    check_output_folder(output)
    result = graphs.export(ImageTokenizer.from_pretrained(model), output, format)
    for name in ("encoder", "decoder"):
        path = Path(output) / f"{name}.{format}"
        console.print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")
    sizes = ", ".join("x".join(map(str, size)) for size in result.sizes)
    console.print(f"verified in {result.runtime}, batches of {sizes} pixels:")
    console.print(f"  tokens   {result.tokens - result.tokens_differing} of {result.tokens} equal")
    console.print(f"  latents  within {result.latent_error:.1e}")
    console.print(f"  images   within {result.image_error:.1e}")
