"""gsqtok convert."""

from __future__ import annotations

from typing import Literal

from gsqtok.cli.options import check_output_folder, console


def convert(checkpoint: str, *, output: str, precision: Literal["float32", "float16"] = "float32") -> None:
    """Convert a checkpoint of the official GSQ implementation to a tokenizer of this package.

    Args:
        checkpoint: a checkpoint.pt, a folder with one, or a hub name
        output: the folder for config.json and model.safetensors
        precision: of the weights in the file; float16 takes half the space

    Example:
          gsqtok convert checkpoint.pt -o gsq-f16/
          gsqtok convert HelmholtzAI-FZJ/GSQ-F16-D16-V256K -o gsq-f16/
    """
    import torch

    from gsqtok.tokenizer import ImageTokenizer

    check_output_folder(output)
    tokenizer = ImageTokenizer.from_pretrained(checkpoint)
    tokenizer.save_pretrained(output, dtype=torch.float16 if precision == "float16" else None)
    quantizer = tokenizer.quantizer
    console.print(
        f"f{tokenizer.factor}, {quantizer.tokens_per_position} x {quantizer.codebook_size:,} codewords a position, "
        f"{tokenizer.bits_per_pixel:.4g} bits a pixel -> {output}"
    )
