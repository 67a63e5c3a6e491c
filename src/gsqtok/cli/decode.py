"""gsqtok decode."""

from __future__ import annotations

from gsqtok.cli.options import check_output_folder, console, load_model, progress


def decode(
    model: str | None,
    tokens: str,
    *,
    output: str,
    tile: int | None = None,
    device: str | None = None,
    allow_code: bool = False,
) -> None:
    """Decode a file of tokens to images (PNG), with the names and sizes of those that were encoded.

    Args:
        tokens: a file written by gsqtok encode
        output: the folder for the images

    Example:
          gsqtok decode tokens.npz -o images/
          gsqtok decode runs/mine tokens.npz -o images/
    """
    from gsqtok.data import to_pil
    from gsqtok.io import image_paths, save_image
    from gsqtok.tokens import TokenArchive

    check_output_folder(output)
    archive = TokenArchive(tokens)
    tokenizer = load_model(model, device, allow_code=allow_code)
    archive.require(tokenizer)
    paths = image_paths(output, archive.sizes)
    with progress("decoding") as bar:
        for name, grid, size in bar.track(archive, total=len(archive)):
            image = tokenizer.decode(grid[None].to(tokenizer.input_device(tile)), size=size, tile=tile)[0]
            save_image(to_pil(image), paths[name])
    console.print(f"{len(archive)} images -> {output}")
