"""gsqtok tokenize."""

from __future__ import annotations

import argparse
import errno
import os
from typing import TYPE_CHECKING, Any

from gsqtok.cli.options import SOURCE, add_model, add_tile, console, load_model, parser
from gsqtok.data.workers import start_server

if TYPE_CHECKING:
    from gsqtok.tokens.run import RunOptions, RunResult

EXAMPLE = """  gsqtok tokenize runs/mine imagenet/ --split train -o imagenet-tokens/
  gsqtok tokenize runs/mine "shards/{000..146}.tar" -o tokens/ --crop ten --precision bf16
  gsqtok tokenize runs/mine photos/ -o tokens/ --size 512 --crop none        # native aspect
  torchrun --nproc-per-node 8 -m gsqtok tokenize runs/mine imagenet/ -o tokens/
  gsqtok tokenize runs/mine imagenet/ -o tokens/ --engine ray --ray-address auto

A run that was stopped in any way goes on when the same command is given again, with any number of processes and either
engine. Then: gsqtok tokens verify tokens/, and in Python gsqtok.TokenDataset("tokens/").

For a handful of images in one .npz file, which numpy reads and gsqtok decode turns back, there is gsqtok encode."""


_TELLING = 30  # seconds after which the time spent waiting says something: the first images take their processes' start


def main(argv: list[str]) -> None:
    """Tokenize images to a token data set."""
    args = _parse(argv)
    if args.engine == "local":
        start_server(args.workers)  # first, for its imports take as long as those of this process
    from gsqtok.tokens.run import tokenize

    if args.device is None and "LOCAL_RANK" in os.environ:
        import torch

        args.device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
        if args.device != "cpu":  # kernels start on the current device
            torch.cuda.set_device(args.device)
    tokenizer = load_model(args)
    try:
        result = tokenize(tokenizer, args.source, args.output, _options(args), model=args.model)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(f"the disk of {args.output} is full; make room and repeat the command, which goes on") from error
    for line in _summary(result, args.output):
        console.print(line)


def _parse(argv: list[str]) -> argparse.Namespace:
    p = parser(
        "tokenize",
        "Images to a token data set: parquet shards that Hugging Face datasets and gsqtok.TokenDataset read,\n"
        "a manifest with counts and hashes, and skipped.parquet with the images that could not be read, and why.",
        EXAMPLE,
    )
    add_model(p)
    p.add_argument("source", metavar="SOURCE", help=SOURCE)
    p.add_argument("-o", "--output", required=True, metavar="OUT", help="the folder of the token data set")
    p.add_argument("--split", help="split of the source, where it has several")
    p.add_argument("--size", type=int, default=256, help="side of the crops in pixels (default: 256); 0: as they are")
    p.add_argument("--crop", choices=("none", "center", "ten"), help="default: center; none keeps the aspect ratio")
    p.add_argument("--resize", type=int, help="short side before cropping (default: --size; ten crops: 1.1 times that)")
    p.add_argument("--flip", action="store_true", help="add the mirror image of each")
    p.add_argument("--resample", choices=("bicubic", "lanczos"), default="bicubic", help="default: bicubic")
    p.add_argument("--fast-resize", action="store_true", help="by torch, not Pillow: pixels differ by 2 of 255 at most")
    p.add_argument("--max-pixels", type=int, help="skip larger images (default: above 89 million pixels)")
    p.add_argument("--carry", nargs="*", default=["label", "caption"], metavar="COLUMN", help="default: label caption")
    p.add_argument("--shard-size", type=int, default=8192, help="images in a shard, at most (default: 8192)")
    p.add_argument("--batch-size", type=int, help="images encoded together (default: found by trying)")
    p.add_argument("--workers", type=int, help="processes that decode (default: one for each processor)")
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the encoder (default: fp32)")
    p.add_argument("--compile", action="store_true", help="compile the encoder: pays for long runs on a GPU")
    add_tile(p)
    p.add_argument("--engine", choices=("local", "ray"), default="local", help="default: local, also under torchrun")
    p.add_argument("--ray-address", help="of a Ray cluster, or 'auto' (default: Ray on this machine alone)")
    return p.parse_args(argv)


def _options(args: argparse.Namespace) -> RunOptions:
    from gsqtok.tokens.crops import Crops
    from gsqtok.tokens.run import RunOptions

    if args.ray_address and args.engine != "ray":
        raise ValueError("--ray-address goes with --engine ray")
    crop = args.crop or ("center" if args.size else "none")
    return RunOptions(
        crops=Crops(args.size or None, crop, args.resize, args.flip, args.resample, args.fast_resize),
        split=args.split,
        columns=tuple(args.carry),
        shard_size=args.shard_size,
        batch_size=args.batch_size,
        workers=args.workers,
        precision=args.precision,
        compile=args.compile,
        tile=args.tile,
        max_pixels=args.max_pixels,
        engine=args.engine,
        ray_address=args.ray_address,
    )


def _summary(result: RunResult, output: str) -> list[str]:
    from gsqtok.tokens.progress import rate

    metrics = result.metrics
    lines = []
    if metrics["of"]:
        lines.append(
            f"{metrics['images']:,} images in {metrics['seconds']:,.1f} s: "
            f"{rate(metrics['images_per_second'])} images/s, {rate(metrics['bytes_per_second'] / 1e6)} MB/s read; "
            f"decoding {rate(metrics['decoded_per_core_second'])} images/s a core, {result.workers or 1} at work"
        )
        if metrics["waiting"] > 0.15 and result.workers and metrics["seconds"] > _TELLING:
            lines.append(f"the model waited for images {metrics['waiting']:.0%} of the time: decoding is the limit")
    if result.manifest is None:
        return [*lines, "this process has done its share; others are still at work"]
    return [*lines, *_whole(result.manifest, output)]


def _whole(manifest: dict[str, Any], output: str) -> list[str]:
    skipped = manifest["skipped"]["rows"]
    lines = [f"{manifest['images']:,} images, {manifest['rows']:,} rows, {manifest['tokens']:,} tokens -> {output}"]
    if skipped:
        lines.append(f"{skipped:,} skipped: see {os.path.join(output, manifest['skipped']['file'])}")
    return lines
