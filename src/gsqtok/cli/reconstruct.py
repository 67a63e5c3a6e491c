"""gsqtok reconstruct."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from gsqtok.cli.options import check_output_folder, console, count, load_model, make_transform, progress
from gsqtok.io import printable

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 20


def reconstruct(
    model: str | None,
    source: str,
    *,
    output: str,
    side_by_side: bool = False,
    split: str | None = None,
    size: int | None = None,
    crop: Literal["none", "center"] = "none",
    groups: int | None = None,
    batch_size: int = 8,
    workers: int = 0,
    tile: int | None = None,
    device: str | None = None,
    allow_code: bool = False,
) -> None:
    """Send images through the tokenizer and back (PNG), with PSNR and SSIM of each.

    Args:
        output: the folder for the reconstructions
        groups: of a tokenizer with nested groups, how many of each position to keep
        side_by_side: write each beside its original, with its metrics below

    Example:
          gsqtok reconstruct images/ -o reconstructions/
          gsqtok reconstruct runs/mine images/ -o reconstructions/ --side-by-side
    """
    from gsqtok.data import eval_loader, open_source, to_pil
    from gsqtok.evaluation import reconstruct as pairs
    from gsqtok.io import image_paths, save_image

    check_output_folder(output, source=source)
    images = open_source(source, split=split)
    tokenizer = load_model(model, device, allow_code=allow_code)
    bits_per_pixel = tokenizer.bits_per_pixel_of(groups)  # first: refuses groups that there are not
    paths = image_paths(output, images.all_keys())
    loader = eval_loader(images, make_transform(size, crop), batch_size=batch_size, workers=workers)
    results = []
    with progress("reconstructing") as bar:
        for result in bar.track(pairs.reconstruct(tokenizer, loader, tile, groups=groups), total=count(images)):
            image = pairs.side_by_side([result]) if side_by_side else to_pil(result.reconstruction)
            save_image(image, paths[result.name])
            results.append((result.name, tuple(result.original.shape[1:]), result.psnr, result.ssim))
    if not results:
        raise ValueError(f"none of the images in {source} can be read: {loader.skipped.summary()}")
    console.print(metrics_table(results, bits_per_pixel))
    console.print(f"{len(results)} images -> {output}")
    if loader.skipped.reasons:
        console.print(loader.skipped.summary())


def metrics_table(results: list[tuple[str, tuple[int, ...], float, float]], bits_per_pixel: float) -> Table:
    """A table of PSNR, SSIM and bits/px: the first images, and the mean of all.

    Args:
        results: name, (height, width), PSNR in dB and SSIM of each image.
        bits_per_pixel: of the tokenizer.
    """
    from rich.table import Table

    table = Table("image", "size", "PSNR, dB", "SSIM", "bits/px")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, (height, width), psnr, ssim in results[:SHOWN]:
        table.add_row(printable(name), f"{width}x{height}", f"{psnr:.2f}", f"{ssim:.3f}", f"{bits_per_pixel:.3g}")
    if len(results) > SHOWN:
        table.add_row(f"... and {len(results) - SHOWN} more")
    table.add_section()
    psnr, ssim = sum(r[2] for r in results) / len(results), sum(r[3] for r in results) / len(results)
    table.add_row(f"mean of {len(results)}", "", f"{psnr:.2f}", f"{ssim:.3f}", f"{bits_per_pixel:.3g}")
    return table
