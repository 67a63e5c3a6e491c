"""gsqtok demo."""

from __future__ import annotations

import time
from pathlib import Path

from gsqtok.cli.options import check_output_folder, console, load_model, progress

IMAGES = Path(__file__).parent.parent / "demo_images" / "*.png"


def demo(model: str | None, *, output: str = "demo", device: str | None = None) -> None:
    """Tokenize and reconstruct the images that come with the package.

    Writes FOLDER/tokens.npz, FOLDER/reconstructions/ and FOLDER/side_by_side.png, and prints a table of PSNR, SSIM and
    bits/px.

    Args:
        output: the folder for everything that is written.

    Example:
          gsqtok demo
          gsqtok demo runs/mine -o demo-mine/
    """
    from gsqtok.cli.reconstruct import metrics_table
    from gsqtok.data import ImageTransform, eval_loader, open_source, to_pil
    from gsqtok.evaluation.reconstruct import reconstruct, side_by_side
    from gsqtok.io import image_paths, save_image
    from gsqtok.tokens import TokenArchiveWriter

    check_output_folder(output)
    folder = Path(output)
    source = open_source(IMAGES)
    tokenizer = load_model(model, device)
    loader = eval_loader(source, ImageTransform(None, crop="none"), batch_size=1)
    paths = image_paths(folder / "reconstructions", source.all_keys())
    start = time.perf_counter()
    results = []
    with TokenArchiveWriter(folder / "tokens.npz", tokenizer) as archive, progress("tokenizing") as bar:
        for result in bar.track(reconstruct(tokenizer, loader), total=len(source)):
            height, width = result.original.shape[1:]
            archive.add(result.name, result.tokens, (height, width))
            save_image(to_pil(result.reconstruction), paths[result.name])
            results.append(result)
    seconds = time.perf_counter() - start
    quantizer = tokenizer.quantizer
    caption = (
        f"gsqtok demo: f{tokenizer.factor}, {quantizer.tokens_per_position} tokens of {quantizer.codebook_size} "
        f"codewords a position, {tokenizer.bits_per_pixel:.3g} bits/px"
    )
    save_image(side_by_side(results, caption), folder / "side_by_side.png")
    metrics = [(r.name, tuple(r.original.shape[1:]), r.psnr, r.ssim) for r in results]
    console.print(metrics_table(metrics, tokenizer.bits_per_pixel))
    console.print(
        f"encoded and decoded in {seconds:.1f} s on {tokenizer.device}; look at {folder / 'side_by_side.png'}"
    )
