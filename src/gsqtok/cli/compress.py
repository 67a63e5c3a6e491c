"""gsqtok compress and gsqtok decompress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from gsqtok.cli.options import (
    check_output_file,
    check_output_folder,
    console,
    count,
    load_model,
    make_transform,
    messages,
    progress,
)

if TYPE_CHECKING:
    from gsqtok.generation.prior import Prior


def compress(
    model: str | None,
    source: str,
    *,
    output: str,
    prior: str | None = None,
    frequencies: Literal["static", "adaptive"] | None = None,
    mean_groups: float | None = None,
    split: str | None = None,
    size: int | None = None,
    crop: Literal["none", "center"] = "none",
    batch_size: int = 8,
    workers: int = 0,
    tile: int | None = None,
    device: str | None = None,
) -> None:
    """Compress images to one file of entropy-coded tokens.

    With a prior each token takes as many bits as the prior finds it surprising; without one, as frequencies of
    codewords say. Every image can be decompressed by itself, and has a checksum.

    Args:
        output: the file to write, such as images.gsq
        frequencies: without a prior: static (one table in the file), adaptive (learned anew in each image; default:
            the smaller)
        mean_groups: of a tokenizer with nested groups: each position keeps what its image needs there, so that on
            average a position takes the bits of so many groups before they are coded (default: all groups)

    Example:
          gsqtok compress images/ -o images.gsq
          gsqtok compress runs/mine images/ -o images.gsq --prior runs/prior
          gsqtok compress runs/nested images/ -o images.gsq --mean-groups 2.5
    """
    from gsqtok.data import eval_loader, open_source
    from gsqtok.generation.compress import Compressor, fixed_bits
    from gsqtok.io import atomic_write
    from gsqtok.tokens.allocation import learn_allocation

    if mean_groups is not None and prior is not None:
        raise ValueError("a prior codes all groups of a position: --mean-groups goes without --prior")
    check_output_file(output, source=source)
    images = open_source(source, split=split)
    tokenizer = load_model(model, device)
    compressor = Compressor(tokenizer, _load_prior(prior), frequencies, device=tokenizer.device)
    loader = eval_loader(images, make_transform(size, crop), batch_size=batch_size, workers=workers)
    chosen = None if mean_groups is None else learn_allocation(tokenizer, images, mean_groups, size)
    names, sizes, grids = [], [], []
    with progress("encoding") as bar:
        task = bar.add_task("", total=count(images))
        for batch in loader:
            pixels = batch["image"].to(tokenizer.input_device(tile))
            tokens = tokenizer.encode(pixels, groups=chosen, tile=tile).cpu().numpy()
            names += batch["keys"]
            sizes += [tuple(batch["image"].shape[2:])] * len(tokens)
            grids += list(tokens.astype("int32"))
            bar.advance(task, len(tokens) + len(batch["skipped"]))
    if not grids:
        raise ValueError(f"none of the images in {source} can be read: {loader.skipped.summary()}")
    data = compressor.pack(names, sizes, grids)
    with atomic_write(output) as temporary:
        temporary.write_bytes(data)
    pixels, fixed = sum(height * width for height, width in sizes), fixed_bits(tokenizer, grids)
    console.print(
        f"{len(names)} images -> {output}: {len(data):,} bytes, {8 * len(data) / pixels:.4f} bits/px; with tokens of a "
        f"fixed length {fixed / 8:,.0f} bytes, {fixed / pixels:.4f} bits/px"
    )
    if loader.skipped.reasons:
        console.print(loader.skipped.summary())


def decompress(
    model: str | None,
    file: str,
    *,
    output: str,
    prior: str | None = None,
    only: list[str] | None = None,
    tile: int | None = None,
    device: str | None = None,
) -> int:
    """Decompress a file of gsqtok compress to images (PNG), with their names and sizes.

    An image whose bytes are damaged is named, and the others are written; the exit status is then 1.

    Args:
        file: a file written by gsqtok compress
        output: the folder for the images
        only: names of the images to decompress (default: all)

    Example:
          gsqtok decompress images.gsq -o images/
          gsqtok decompress runs/mine images.gsq -o images/ --prior runs/prior --only cat.jpg
    """
    import torch

    from gsqtok.data import to_pil
    from gsqtok.generation.coder import DamagedError
    from gsqtok.generation.compress import CompressedFile, decompress
    from gsqtok.io import image_paths, save_image

    check_output_folder(output)
    compressed = CompressedFile(file)
    paths = image_paths(output, compressed.header.names)
    tokenizer = load_model(model, device)
    read = decompress(compressed, tokenizer, _load_prior(prior), names=only, device=tokenizer.device)
    if compressed.damaged_header:
        messages.print(f"{file}: a copy of the header is damaged, the other was used ({compressed.damaged_header})")
    damaged, written = 0, 0
    with progress("decompressing") as bar:
        for name, size, tokens in bar.track(read, total=len(compressed) if only is None else len(only)):
            if isinstance(tokens, DamagedError):
                console.print(f"{name}: lost, {tokens}")
                damaged += 1
                continue
            grid = torch.from_numpy(tokens)[None].to(tokenizer.input_device(tile))
            save_image(to_pil(tokenizer.decode(grid, size=size, tile=tile)[0]), paths[name])
            written += 1
    console.print(f"{written} images -> {output}" + (f"; {damaged} lost" if damaged else ""))
    return 1 if damaged or compressed.damaged_header else 0


def _load_prior(folder: str | None) -> Prior | None:
    from gsqtok.generation.prior import Prior

    return None if folder is None else Prior.from_pretrained(folder)
