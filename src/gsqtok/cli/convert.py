"""gsqtok convert."""

from __future__ import annotations

from gsqtok.cli.options import console, parser


def main(argv: list[str]) -> None:
    """Convert an official checkpoint to a tokenizer's folder."""
    p = parser(
        "convert",
        "A checkpoint of the official GSQ implementation to a folder with config.json and model.safetensors.",
        "  gsqtok convert checkpoint.pt -o gsq-f16/\n  gsqtok convert HelmholtzAI-FZJ/GSQ-F16-D16-V256K -o gsq-f16/",
    )
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint.pt, a folder with one, or a hub name")
    p.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the tokenizer goes")
    p.add_argument("--half", action="store_true", help="store the weights as float16, half the size")
    args = p.parse_args(argv)

    import torch

    from gsqtok.tokenizer import ImageTokenizer

    tokenizer = ImageTokenizer.from_pretrained(args.checkpoint)
    tokenizer.save_pretrained(args.output, dtype=torch.float16 if args.half else None)
    quantizer = tokenizer.quantizer
    console.print(
        f"f{tokenizer.factor}, {quantizer.tokens_per_position} x {quantizer.codebook_size:,} codewords a position, "
        f"{tokenizer.bits_per_pixel:.4g} bits a pixel -> {args.output}"
    )
