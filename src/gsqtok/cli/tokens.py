"""gsqtok tokens: look at token data sets, prove that they are whole, put them together and divide them."""

from __future__ import annotations

from gsqtok.cli.options import check_output_folder, console, load_model, print_rows, progress


def info(folder: str) -> None:
    """Say what a token data set is.

    Args:
        folder: of a token data set, written by gsqtok tokenize

    Example:
          gsqtok tokens info tokens/
    """
    from gsqtok.tokens.dataset import describe

    print_rows(describe(folder))


def verify(
    model: str | None,
    folder: str,
    *,
    sample: int = 4,
    output: str | None = None,
    tile: int | None = None,
    device: str | None = None,
) -> int:
    """Prove that a token data set is whole, and decode a sample of it.

    Args:
        model: the tokenizer that decodes (default: the one that the data set names)
        folder: of a token data set
        sample: how many rows to decode
        output: a folder for the decoded images

    Example:
          gsqtok tokens verify tokens/ --sample 16 -o decoded/
    """
    from gsqtok.data import to_pil
    from gsqtok.io import image_paths, save_image
    from gsqtok.tokens.manifest import read_manifest
    from gsqtok.tokens.verify import decode_sample
    from gsqtok.tokens.verify import verify as problems_of

    if output:
        check_output_folder(output)
    manifest = read_manifest(folder)
    with progress("verifying") as bar:
        task = bar.add_task("", total=len(manifest["units"]))
        problems = problems_of(folder, lambda units: bar.advance(task, units))
    for problem in problems:
        console.print(problem)
    if problems:
        console.print(f"{folder}: {len(problems)} problems")
        return 1
    console.print(
        f"{folder} is whole: {manifest['images']:,} images in {manifest['rows']:,} rows, "
        f"{manifest['skipped']['rows']:,} skipped, every hash as written"
    )
    if sample > 0 and manifest["rows"]:
        decoded = decode_sample(folder, load_model(model or manifest["model"], device), sample, tile=tile)
        if output:
            names = [f"{i:04d}-{key.replace('/', '_')}" for i, (key, _, _) in enumerate(decoded)]
            for (_, _, image), path in zip(decoded, image_paths(output, names).values(), strict=True):
                save_image(to_pil(image), path)
        where = f" -> {output}" if output else ""
        console.print(f"decoded {len(decoded)} of them{where}")
    return 0


def merge(folders: list[str], *, output: str, prefix: bool = False) -> None:
    """Put several token data sets together.

    Args:
        folders: of token data sets
        output: the folder of the new one
        prefix: put each folder's name before its keys

    Example:
          gsqtok tokens merge part-a/ part-b/ -o all/
    """
    from gsqtok.tokens import edit

    manifest = edit.merge(folders, output, prefix=prefix)
    console.print(f"{manifest['images']:,} images, {manifest['rows']:,} rows -> {output}")


def split(folder: str, fraction: float, *, output: tuple[str, str], seed: int = 0) -> None:
    """Divide a token data set in two at random, by images.

    Args:
        folder: of a token data set
        fraction: of the images, for the first
        output: the folders of the two new ones
        seed: another seed gives another division

    Example:
          gsqtok tokens split all/ 0.95 -o train/ validation/
    """
    from gsqtok.tokens import edit

    first, second = output
    for manifest, target in zip(edit.split(folder, (first, second), fraction, seed), output, strict=True):
        console.print(f"{manifest['images']:,} images, {manifest['rows']:,} rows -> {target}")
