"""gsqtok reconstruct."""

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
    """Reconstruct images, and say how well."""
    p = parser(
        "reconstruct",
        "Images through the tokenizer and back (PNG), with PSNR and SSIM of each.",
        "  gsqtok reconstruct images/ -o reconstructions/\n"
        "  gsqtok reconstruct runs/mine images/ -o reconstructions/ --side-by-side",
    )
    add_model(p)
    add_source(p)
    add_tile(p)
    p.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the reconstructions go")
    p.add_argument("--side-by-side", action="store_true", help="write each beside its original, figures below")
    args = p.parse_args(argv)

    from gsqtok.data import check_outside, eval_loader, open_source, to_pil
    from gsqtok.evaluation.reconstruct import reconstruct, side_by_side
    from gsqtok.io import image_paths, save_image

    check_outside(args.source, args.output)
    source = open_source(args.source, split=args.split)
    tokenizer = load_model(args)
    paths = image_paths(args.output, source.all_keys())
    loader = eval_loader(source, transform(args), batch_size=args.batch_size, workers=args.workers)
    figures = []
    with progress("reconstructing") as bar:
        for result in bar.track(reconstruct(tokenizer, loader, args.tile), total=count(source)):
            image = side_by_side([result]) if args.side_by_side else to_pil(result.reconstruction)
            save_image(image, paths[result.name])
            figures.append((result.name, tuple(result.original.shape[1:]), result.psnr, result.ssim))
    if not figures:
        raise ValueError(f"none of the images in {args.source} can be read: {loader.skipped.summary()}")
    console.print(figures_table(figures, tokenizer.bits_per_pixel))
    console.print(f"{len(figures)} images -> {args.output}")
    if loader.skipped.reasons:
        console.print(loader.skipped.summary())


SHOWN = 20


def figures_table(figures: list[tuple[str, tuple[int, int], float, float]], bits_per_pixel: float):
    """A table of PSNR, SSIM and bits/px: the first images, and the mean of all."""
    from rich.table import Table

    table = Table("image", "size", "PSNR, dB", "SSIM", "bits/px")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, (height, width), psnr, ssim in figures[:SHOWN]:
        table.add_row(name, f"{width}x{height}", f"{psnr:.2f}", f"{ssim:.3f}", f"{bits_per_pixel:.3g}")
    if len(figures) > SHOWN:
        table.add_row(f"... and {len(figures) - SHOWN} more")
    table.add_section()
    psnr, ssim = (sum(f[i] for f in figures) / len(figures) for i in (2, 3))
    table.add_row(f"mean of {len(figures)}", "", f"{psnr:.2f}", f"{ssim:.3f}", f"{bits_per_pixel:.3g}")
    return table
