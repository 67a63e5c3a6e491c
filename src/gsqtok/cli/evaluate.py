"""gsqtok evaluate."""

from __future__ import annotations

import json
import math

from gsqtok.cli.options import add_model, add_source, console, count, load_model, parser, progress, transform


def main(argv: list[str]) -> None:
    """Measure a tokenizer on a set of pictures."""
    p = parser(
        "evaluate",
        "Measure a tokenizer on a set of pictures: PSNR, SSIM, codebook usage and perplexity, bits per pixel.",
        "  gsqtok evaluate pictures/\n  gsqtok evaluate runs/mine imagenet/ --split validation --size 256 --crop "
        "-o results.json",
    )
    add_model(p)
    add_source(p)
    p.add_argument("-o", "--output", metavar="FILE", help="write the figures as JSON, too")
    args = p.parse_args(argv)

    from rich.table import Table

    from gsqtok.data import open_source
    from gsqtok.evaluation import evaluate
    from gsqtok.output import written_aside

    source = open_source(args.source, split=args.split)
    tokenizer = load_model(args)
    with progress("measuring") as bar:
        task = bar.add_task("", total=count(source))
        figures = evaluate(
            tokenizer,
            source,
            transform=transform(args),
            batch_size=args.batch_size,
            workers=args.workers,
            on_progress=lambda done: bar.advance(task, done),
        )
    table = Table("figure", "value")
    for name, value in figures.items():
        if isinstance(value, list):
            table.add_row(name, ", ".join(f"{v:.4g}" for v in value))
        else:
            table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.6g}")
    console.print(table)
    if args.output:
        # JSON has no NaN (the SSIM of pictures under 11 pixels)
        figures = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in figures.items()}
        record = {"model": args.model, "fingerprint": tokenizer.fingerprint(), "source": args.source, "size": args.size}
        with written_aside(args.output) as aside:
            aside.write_text(json.dumps(record | {"crop": args.crop, "figures": figures}, indent=2) + "\n")
