"""gsqtok decode."""

from __future__ import annotations

from gsqtok.cli.options import add_model, add_tile, console, load_model, parser, progress


def main(argv: list[str]) -> None:
    """Decode a file of tokens to images."""
    p = parser(
        "decode",
        "A file of tokens to images (PNG), with the names and sizes of those that were encoded.",
        "  gsqtok decode tokens.npz -o images/\n  gsqtok decode runs/mine tokens.npz -o images/",
    )
    add_model(p)
    p.add_argument("tokens", metavar="TOKENS", help="a file written by gsqtok encode")
    add_tile(p)
    p.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the images go")
    args = p.parse_args(argv)

    from gsqtok.data import to_pil
    from gsqtok.io import image_paths, save_image
    from gsqtok.tokens import TokenArchive

    archive = TokenArchive(args.tokens)
    tokenizer = load_model(args)
    archive.require(tokenizer)
    paths = image_paths(args.output, archive.sizes)
    with progress("decoding") as bar:
        for name, tokens, size in bar.track(archive, total=len(archive)):
            image = tokenizer.decode(tokens[None].to(tokenizer.input_device(args.tile)), size, args.tile)[0]
            save_image(to_pil(image), paths[name])
    console.print(f"{len(archive)} images -> {args.output}")
