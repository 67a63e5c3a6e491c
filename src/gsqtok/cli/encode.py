"""gsqtok encode."""

from __future__ import annotations

from gsqtok.cli.options import (
    add_model,
    add_source,
    add_tile,
    console,
    count,
    load_model,
    parser,
    progress,
    transform,
)


def main(argv: list[str]) -> None:
    """Encode images to a file of tokens."""
    p = parser(
        "encode",
        "A few images to one file of tokens, which numpy reads: numpy.load('tokens.npz')['cat.png'] is a grid\n"
        "(h, w, G). For a data set, in shards and restartable, there is gsqtok tokenize.",
        "  gsqtok encode images/ -o tokens.npz\n  gsqtok encode runs/mine images/ -o tokens.npz --size 256 --crop",
    )
    add_model(p)
    add_source(p)
    add_tile(p)
    p.add_argument("-o", "--output", required=True, metavar="FILE", help="the file to write, such as tokens.npz")
    args = p.parse_args(argv)
    if not args.output.endswith(".npz"):
        raise ValueError(f"--output must end in .npz, got {args.output}")

    from gsqtok.data import eval_loader, open_source
    from gsqtok.tokens import TokenArchiveWriter

    source = open_source(args.source, split=args.split)
    tokenizer = load_model(args)
    loader = eval_loader(source, transform(args), batch_size=args.batch_size, workers=args.workers)
    positions = 0
    with TokenArchiveWriter(args.output, tokenizer) as archive, progress("encoding") as bar:
        task = bar.add_task("", total=count(source))
        for batch in loader:
            tokens = tokenizer.encode(batch["image"].to(tokenizer.input_device(args.tile)), args.tile)
            for name, grid in zip(batch["keys"], tokens, strict=True):
                archive.add(name, grid, tuple(batch["image"].shape[2:]))
            positions += tokens[..., 0].numel()
            bar.advance(task, len(tokens) + len(batch["skipped"]))
        if not archive.sizes:
            raise ValueError(f"none of the images in {args.source} can be read: {loader.skipped.summary()}")
    console.print(
        f"{len(archive.sizes)} images, {positions:,} positions of {tokenizer.quantizer.bits:g} bits "
        f"({tokenizer.bits_per_pixel:.3g} bits/px) -> {args.output}"
    )
    if loader.skipped.reasons:
        console.print(loader.skipped.summary())
