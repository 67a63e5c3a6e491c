"""gsqtok evaluate."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from gsqtok.cli.options import (
    add_model,
    add_source,
    add_tile,
    console,
    count,
    device,
    load_model,
    messages,
    parser,
    progress,
    transform,
)

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from gsqtok.evaluation import FeatureNetwork, ImageDistance, Reconstruction, Result

PERCEPTUAL = ("lpips_vgg", "lpips_alex", "dists")
PRECISIONS = ("float32", "bfloat16", "float16")


def main(argv: list[str]) -> None:
    """Measure a tokenizer on a set of images."""
    p = parser(
        "evaluate",
        "Measure a tokenizer on a set of images, under a protocol that goes on record: rFID, sFID, Inception Score,\n"
        "LPIPS, PSNR, SSIM, MS-SSIM, codebook usage, perplexity and entropy, bits per pixel, images a second.",
        "  gsqtok evaluate images/\n"
        "  gsqtok evaluate runs/mine imagenet/ --split validation --protocol adm -o results.json\n"
        "  gsqtok evaluate runs/mine images/ --features timm:tf_efficientnet_lite0\n"
        "  gsqtok evaluate codec:webp@1.0 images/ -o webp.json\n"
        "  torchrun --nproc-per-node 8 -m gsqtok evaluate runs/mine imagenet/ --split validation --protocol adm",
    )
    add_model(p, ", or a codec at so many bits/px: codec:jpeg@1.0, codec:webp@1.0, codec:avif@1.0")
    add_source(p)
    add_tile(p)
    _add_options(p)
    args = p.parse_args(argv)

    with _processes(args) as (rank, world_size):
        _measure(args, argv, rank, world_size)


def _add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--protocol",
        metavar="NAME",
        help="how images are prepared: adm (as guided-diffusion, which most rFIDs are under), flex_gen (as the "
        "original GSQ evaluation), native (as they are); --size is theirs then (default: 256 for the first two)",
    )
    p.add_argument(
        "--features",
        metavar="NETWORK",
        help="of the distribution metrics: inception (rFID), timm:NAME (a Fréchet distance under that name) or none "
        "(default: inception where its weights are)",
    )
    p.add_argument("--weights", metavar="FILE", help="weights of --features (default: cache, else download)")
    p.add_argument(
        "--perceptual",
        nargs="*",
        choices=PERCEPTUAL,
        metavar="NAME",
        help=f"{', '.join(PERCEPTUAL)} (default: LPIPS where its weights are; none where nothing is named)",
    )
    p.add_argument("--neighbours", action="store_true", help="precision, recall, density and coverage, too")
    p.add_argument("--reference", metavar="FILE", help="compare with these statistics instead of the originals")
    p.add_argument("--save-reference", metavar="FILE", help="write the originals' statistics (.npz)")
    p.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="the tokenizer's; the metrics keep theirs"
    )
    p.add_argument("--streaming", action="store_true", help="read the source in place, without a cache")
    p.add_argument("-o", "--output", metavar="FILE", help="write the result as JSON, with images beside it")
    p.add_argument(
        "--images-as",
        metavar="FILE",
        help="with -o: show the images that this result shows (default: the best, median and worst)",
    )


def _measure(args: argparse.Namespace, argv: list[str], rank: int, world_size: int) -> None:
    from gsqtok.data import open_source
    from gsqtok.evaluation import Result
    from gsqtok.evaluation.examples import save_examples
    from gsqtok.evaluation.protocol import prepare

    if args.protocol and args.crop:
        raise ValueError("a protocol says how to crop: leave --crop out")
    prepared: dict[str, Any] = {"protocol": args.protocol, "size": args.size}
    if not args.protocol:
        prepared = {"transform": transform(args)}
    if args.images_as and not args.output:
        raise ValueError("--images-as says which images -o writes: name its file, too")
    like = Result.load(args.images_as) if args.images_as else None
    source = open_source(args.source, split=args.split, streaming=args.streaming)
    run, reconstruct, where = _codec(args) if _is_codec(args.model) else _tokenizer(args)
    metrics = {"features": _features(args), "perceptual": _perceptual(args)}
    with progress("measuring") as bar:
        bar.disable = rank > 0
        task = bar.add_task("", total=count(source))
        result = run(
            source,
            **prepared,
            **metrics,
            neighbours=args.neighbours,
            reference=args.reference,
            save_reference=args.save_reference,
            source=args.source,
            split=args.split,
            batch_size=args.batch_size,
            workers=args.workers,
            on_progress=lambda done: bar.advance(task, done * world_size),  # the others are about as far
        )
    if rank:
        return
    result.environment["command"] = shlex.join(["gsqtok", "evaluate", *argv])
    console.print(_figures(result))
    console.print(_circumstances(result))
    if args.output:
        save_examples(reconstruct, source, prepare(**prepared)[0], result, args.output, where, like)
        result.save(args.output)


def _is_codec(model: str | None) -> bool:
    return model is not None and model.startswith("codec:")


def _tokenizer(args: argparse.Namespace) -> tuple[Callable[..., Result], Callable[..., Reconstruction], torch.device]:
    """What measures the tokenizer that is named, what reconstructs an image with it, and where."""
    import torch

    from gsqtok.evaluation import evaluate
    from gsqtok.evaluation.run import reconstructor

    tokenizer = load_model(args)
    precision = None if args.precision == "float32" else getattr(torch, args.precision)
    run = partial(evaluate, tokenizer, name=args.model or "embedded", precision=precision, tile=args.tile)
    return run, reconstructor(tokenizer.eval(), precision, args.tile), tokenizer.device


def _codec(args: argparse.Namespace) -> tuple[Callable[..., Result], Callable[..., Reconstruction], torch.device]:
    """The same for a codec."""
    from gsqtok.evaluation import Codec, evaluate_codec

    if args.precision != "float32":
        raise ValueError("--precision is a tokenizer's; a codec has none")
    if args.tile:
        raise ValueError("--tile is a tokenizer's; a codec takes whole images")
    codec = Codec.parse(args.model)
    where = device(args)
    return partial(evaluate_codec, codec, device=where), codec, where


@contextmanager
def _processes(args: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """Rank and number of processes: one, or those of torchrun, each on a device of its own."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield 0, 1
        return
    import torch
    from accelerate import PartialState

    # where there is no GPU accelerate must be told, or it takes every process for the only one
    state = PartialState(cpu=args.device == "cpu" or not torch.cuda.is_available())
    args.device = str(state.device)
    if not state.is_main_process:  # one of them is enough to hear from
        logging.disable(logging.WARNING)
        messages.quiet = True
    try:
        yield state.process_index, state.num_processes
    finally:
        state.destroy_process_group()


def _features(args: argparse.Namespace) -> FeatureNetwork | None:
    """The network asked for, fetched if need be; by default Inception v3 where its weights are."""
    from gsqtok.evaluation import build_features

    if args.features == "none":
        return None
    if args.features or args.weights:
        return build_features(args.features or "inception", args.weights)
    try:
        return build_features("inception", download=False)
    except (FileNotFoundError, ImportError) as error:
        messages.print(f"left out: {error} (--features inception fetches it, none keeps this quiet)", soft_wrap=True)
        return None


def _perceptual(args: argparse.Namespace) -> list[ImageDistance]:
    from gsqtok.evaluation import ImageDistance

    if args.perceptual is not None:
        return [ImageDistance(name, download=True) for name in args.perceptual]
    distances = []
    for name in ("lpips_vgg", "lpips_alex"):
        try:
            distances.append(ImageDistance(name))
        except FileNotFoundError as error:
            messages.print(
                f"left out: {error} (--perceptual {name} fetches it, --perceptual alone keeps this quiet)",
                soft_wrap=True,
            )
    return distances


def _figures(result: Result) -> Table:
    from rich.table import Table

    table = Table("figure", "value")
    table.columns[1].justify = "right"
    for name, value in result.figures.items():
        table.add_row(name, "not defined" if value != value else f"{value:.6g}")
    return table


def _circumstances(result: Result) -> Table:
    """What was measured, and how."""
    from rich.table import Table

    model, data, protocol, where = result.model, result.data, result.protocol, result.environment
    table = Table("measured", "")
    identity = f"{model['fingerprint'][:12]}, {model['precision']}" if model["fingerprint"] else model["version"]
    tiles = f", in tiles of {model['tile']}" if model.get("tile") else ""
    table.add_row("model", f"{model['name']} ({identity}{tiles})")
    if not model["fingerprint"]:
        over = sum(bits > model["bits_per_pixel"] for bits in result.per_image["bits_per_pixel"])
        more = f"; {over:,} files are larger at the lowest quality" if over else ""
        table.add_row("files", f"at most {model['bits_per_pixel']:g} bits/px{more}")
    split = f" {data['split']}" if data["split"] else ""
    table.add_row("images", f"{data['images']:,} of {data['source']}{split} ({data['fingerprint'][:12]})")
    if data["skipped"]:
        table.add_row("skipped", f"{data['skipped']:,}")
    size = "own size" if protocol["size"] is None else f"{protocol['size']} px"
    resize = f", resized by {protocol['resize_filter']}, antialiased" if protocol["resize_filter"] else ""
    table.add_row("protocol", f"{protocol['name']}: {size}, crop {protocol['crop']}{resize}, {protocol['rounding']}")
    if features := protocol["features"]:
        table.add_row("features", f"{features['network']} ({features['weights_sha256'][:12]}), {features['layer']}")
        reference = protocol["reference"]
        table.add_row("against", reference if isinstance(reference, str) else f"saved: {reference['source']}")
    table.add_row("on", f"{where['device']}, {where['processes']} process(es), {where['date']}")
    return table
