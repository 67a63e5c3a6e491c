"""gsqtok convert."""

from __future__ import annotations

from typing import Literal

from gsqtok.cli.options import check_output_folder, console, describe_tokens


def convert(checkpoint: str, *, output: str, precision: Literal["float32", "float16"] = "float32") -> None:
    """Convert a checkpoint of another project to a tokenizer's folder.

    Args:
        checkpoint: a file, a folder with one, or a hub name; FAMILY:FILE names its family (see docs/published.md)
        output: the folder for config.json and model.safetensors
        precision: of the weights in the file; float16 takes half the space

    Example:
          gsqtok convert checkpoint.pt -o gsq-f16/
          gsqtok convert HelmholtzAI-FZJ/GSQ-F16-D16-V256K -o gsq-f16/
          gsqtok convert llamagen:vq_ds16_c2i.pt -o llamagen/
    """
    import torch

    from gsqtok.tokenizer import ImageTokenizer

    check_output_folder(output)
    tokenizer = ImageTokenizer.from_pretrained(checkpoint)
    tokenizer.save_pretrained(output, dtype=torch.float16 if precision == "float16" else None)
    console.print(f"{describe_tokens(tokenizer)}, {tokenizer.bits_per_pixel:.4g} bits/px -> {output}")
