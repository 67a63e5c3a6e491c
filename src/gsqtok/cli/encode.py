"""gsqtok encode."""

from __future__ import annotations

from typing import Literal

from gsqtok.cli.options import check_output_file, console, count, load_model, make_transform, progress


def encode(
    model: str | None,
    source: str,
    *,
    output: str,
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
    """Encode a few images to one file of tokens, which numpy reads.

    numpy.load('tokens.npz')['cat.png'] is a grid (h, w, G). For a data set, in shards and restartable, there is gsqtok
    tokenize.

    Args:
        output: the file to write, such as tokens.npz
        groups: of a tokenizer with nested groups, how many of each position to keep

    Example:
          gsqtok encode images/ -o tokens.npz
          gsqtok encode runs/mine images/ -o tokens.npz --size 256 --crop center
    """
    from gsqtok.data import eval_loader, open_source
    from gsqtok.tokens import TokenArchiveWriter

    check_output_file(output, suffix=".npz", source=source)
    images = open_source(source, split=split)
    tokenizer = load_model(model, device, allow_code=allow_code)
    bits_per_pixel = tokenizer.bits_per_pixel_of(groups)  # first: refuses groups that there are not
    loader = eval_loader(images, make_transform(size, crop), batch_size=batch_size, workers=workers)
    positions = 0
    with TokenArchiveWriter(output, tokenizer) as archive, progress("encoding") as bar:
        task = bar.add_task("", total=count(images))
        for batch in loader:
            tokens = tokenizer.encode(batch["image"].to(tokenizer.input_device(tile)), groups=groups, tile=tile)
            for name, grid in zip(batch["keys"], tokens, strict=True):
                archive.add(name, grid, tuple(batch["image"].shape[2:]))
            positions += tokens[..., 0].numel()
            bar.advance(task, len(tokens) + len(batch["skipped"]))
        if not archive.sizes:
            raise ValueError(f"none of the images in {source} can be read: {loader.skipped.summary()}")
    console.print(
        f"{len(archive.sizes)} images, {positions:,} positions of {tokenizer.quantizer.bits_of(groups):g} bits "
        f"({bits_per_pixel:.3g} bits/px) -> {output}"
    )
    if loader.skipped.reasons:
        console.print(loader.skipped.summary())
