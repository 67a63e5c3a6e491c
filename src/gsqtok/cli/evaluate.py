"""gsqtok evaluate."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gsqtok.cli import options
from gsqtok.cli.options import (
    Precision,
    check_output_file,
    console,
    count,
    load_model,
    make_transform,
    messages,
    progress,
    resolve_device,
)

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from gsqtok.data.sources import ImageSource
    from gsqtok.evaluation import FeatureNetwork, ImageDistance, Reconstruction, Result
    from gsqtok.evaluation.run import Bits
    from gsqtok.tokenizer import ImageTokenizer
    from gsqtok.tokenizer.allocation import GroupAllocator


def evaluate(
    model: str | None,
    source: str,
    *,
    protocol: Literal["adm", "flex_gen", "native", "tokbench", "vtbench", "vtbench_padded"] | None = None,
    split: str | None = None,
    size: int | None = None,
    crop: Literal["none", "center"] = "none",
    features: str | None = None,
    weights: str | None = None,
    perceptual: list[Literal["lpips_vgg", "lpips_alex", "lpips_vtbench", "dists"]] | None = None,
    neighbours: bool = False,
    pfid: str | None = None,
    reference: str | None = None,
    save_reference: str | None = None,
    streaming: bool = False,
    output: str | None = None,
    images_as: str | None = None,
    groups: int | None = None,
    mean_groups: float | None = None,
    allocation: str | None = None,
    batch_size: int = 8,
    workers: int = 0,
    tile: int | None = None,
    precision: Precision = "float32",
    files: Literal["static", "adaptive"] | None = None,
    prior: str | None = None,
    device: str | None = None,
    allow_code: bool = False,
) -> None:
    """Measure a tokenizer on a set of images.

    The metrics are rFID, sFID, Inception Score, LPIPS, PSNR, SSIM, MS-SSIM, codebook usage, perplexity and entropy,
    bits per pixel, and images per second, measured under a protocol that goes on record.

    Args:
        model: a tokenizer (its folder, a run's folder, a published checkpoint, a hub name; default: the one inside the
            package), or a codec at so many bits/px: codec:jpeg@1.0, codec:webp@1.0, codec:avif@1.0
        protocol: how images are prepared: adm (as guided-diffusion, which most rFIDs are under), flex_gen (as the
            original GSQ evaluation), native (as they are), vtbench and vtbench_padded (VTBench's tables) or tokbench
            (text and faces; the source is TokBench's folder); --size is then the protocol's (default: 256)
        features: network of the distribution metrics: inception (rFID), timm:NAME (a Frechet distance under that name)
            or none (default: inception where its weights are)
        weights: file with the weights of --features (default: the cache, else a download)
        perceptual: any of lpips_vgg, lpips_alex, lpips_vtbench, dists (default: LPIPS where its weights are; none where
            nothing is named)
        neighbours: measure precision, recall, density and coverage, too
        pfid: SHARE@NEAREST, such as 0.5@100: also the FID of images of which that share of the tokens is drawn anew
            among the nearest codewords
        reference: compare with the statistics in this file instead of the originals
        save_reference: write the originals' statistics to this file (.npz)
        streaming: read a data set of the hub over the network instead of downloading it
        output: write the result to this JSON file, with images beside it
        groups: of a tokenizer with nested groups, how many of each position to keep
        mean_groups: likewise, but each position keeps what its image needs there, at the bits of so many groups on
            average, the map's included; learnt from 256 of the images, as gsqtok tokenize and compress do
        allocation: likewise, learnt before: allocation.safetensors of a token data set
        images_as: with -o, show the images that this result shows (default: the best, median and worst)
        precision: of the tokenizer; the metrics keep theirs
        files: bits_per_pixel is that of files as gsqtok compress writes them, one for each image, with these
            frequencies, as it is for codecs (default: tokens of a fixed length)
        prior: likewise, with this prior

    Example:
          gsqtok evaluate images/
          gsqtok evaluate runs/mine imagenet/ --split validation --protocol adm -o results.json
          gsqtok evaluate runs/mine images/ --features timm:tf_efficientnet_lite0
          gsqtok evaluate runs/nested images/ --mean-groups 2.5
          gsqtok evaluate codec:webp@1.0 images/ -o webp.json
          torchrun --nproc-per-node 8 -m gsqtok evaluate runs/mine imagenet/ --split validation --protocol adm
    """
    from gsqtok.data import open_source

    prepared = _prepared(protocol, size, crop)
    like = _images_as(images_as, output, source)
    if protocol == "tokbench":
        asked: dict[str, Any] = {"neighbours": neighbours, "reference": reference, "save_reference": save_reference}
        asked |= {"split": split, "features": features, "weights": weights, "perceptual": perceptual, "pfid": pfid}
        asked |= {"files": files, "prior": prior, "mean_groups": mean_groups, "allocation": allocation}
        _refuse_with_tokbench(asked | {"streaming": streaming, "images_as": images_as, "groups": groups})
        return _tokbench(model, source, size or 256, precision, tile, device, allow_code, output)
    with _processes(device) as (rank, world_size, device):
        images = open_source(source, split=split, streaming=streaming)
        counting = _file_bits(files, prior)
        kept = _Kept(groups, mean_groups, allocation, images, size)
        run, reconstruct, _, where = _subject(model, precision, tile, kept, pfid, device, allow_code, counting)
        networks = {"features": _features(features, weights), "perceptual": _perceptual(perceptual)}
        with _measuring(images, rank, world_size) as on_progress:
            result = run(
                images,
                **prepared,
                **networks,
                neighbours=neighbours,
                reference=reference,
                save_reference=save_reference,
                source=source,
                split=split,
                batch_size=batch_size,
                workers=workers,
                on_progress=on_progress,
            )
        if rank == 0:
            _report(result, reconstruct, images, prepared, where, output, like)


def _prepared(protocol: str | None, size: int | None, crop: Literal["none", "center"]) -> dict[str, Any]:
    """How images are prepared: by a protocol, or else by a transform."""
    if not protocol:
        return {"transform": make_transform(size, crop)}
    if crop != "none":
        raise ValueError("a protocol says how to crop: leave --crop out")
    return {"protocol": protocol, "size": size}


def _images_as(images_as: str | None, output: str | None, source: str) -> Result | None:
    """The result whose images are shown again, if one is named; refuses an output that cannot be written."""
    from gsqtok.evaluation import Result

    if images_as and not output:
        raise ValueError("--images-as says which images -o writes: name its file, too")
    if output:
        check_output_file(output, source=source)
    return Result.load(images_as) if images_as else None


@contextmanager
def _measuring(images: ImageSource, rank: int, world_size: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, shown by the first process; what it gives is called with the number of images done since."""
    with progress("measuring") as bar:
        bar.disable = rank > 0
        task = bar.add_task("", total=count(images))
        yield lambda done: bar.advance(task, done * world_size)  # the others are about as far


def _report(
    result: Result,
    reconstruct: Callable[..., Reconstruction],
    images: ImageSource,
    prepared: dict[str, Any],
    where: torch.device,
    output: str | None,
    like: Result | None,
) -> None:
    """Print the result, and save it with some of the images where an output is named."""
    from gsqtok.evaluation.examples import save_examples
    from gsqtok.evaluation.protocol import prepare

    result.environment["command"] = options.command
    console.print(_metrics(result))
    console.print(_circumstances(result))
    if output:
        save_examples(reconstruct, images, prepare(**prepared)[0], result, output, where, like)
        result.save(output)


def _subject(
    model: str | None,
    precision: str,
    tile: int | None,
    kept: _Kept | None,
    pfid: str | None,
    device: str | None,
    allow_code: bool,
    counting: Callable[[ImageTokenizer], Bits] | None = None,
) -> tuple[Callable[..., Result], Callable[..., Reconstruction], Callable[[], dict[str, Any]], torch.device]:
    """What measures the tokenizer or codec, what reconstructs an image with it, what goes on record, and where."""
    import torch

    from gsqtok.evaluation import Codec, evaluate, evaluate_codec
    from gsqtok.evaluation.run import describe, reconstructor

    asked = kept.asked if kept else ""
    if model is not None and model.startswith("codec:"):
        if precision != "float32":
            raise ValueError("--precision is a tokenizer's; a codec has none")
        if tile:
            raise ValueError("--tile is a tokenizer's; a codec takes whole images")
        if asked:
            raise ValueError(f"{asked} is a tokenizer's; a codec is named with its rate: codec:webp@1.0")
        if counting:
            raise ValueError("--files and --prior are for tokens; a codec writes files of its own")
        if pfid:
            raise ValueError("--pfid perturbs tokens; a codec has none")
        codec, where = Codec.parse(model), resolve_device(device)
        return partial(evaluate_codec, codec, device=where), codec, lambda: codec.model, where
    if asked and (counting or pfid):
        raise ValueError(f"--files, --prior and --pfid take all groups of a position; leave {asked} out")
    tokenizer = load_model(model, device, allow_code=allow_code)
    dtype = None if precision == "float32" else getattr(torch, precision)
    groups = kept.of(tokenizer) if kept else None
    name, bits = model or "embedded", counting(tokenizer) if counting else None
    run = partial(evaluate, tokenizer, name=name, groups=groups, precision=dtype, tile=tile, pfid=pfid, bits=bits)
    record = partial(describe, tokenizer, name, dtype, tile, groups)
    return run, reconstructor(tokenizer.eval(), dtype, tile, groups), record, tokenizer.device


class _Kept(NamedTuple):
    """What is asked for of nested groups, and the images from which --mean-groups learns."""

    groups: int | None
    mean_groups: float | None
    allocation: str | None
    images: ImageSource
    size: int | None

    @property
    def asked(self) -> str:
        """The option that was given; none where all groups are kept.

        Raises:
            ValueError: several were.
        """
        options = {"groups": self.groups, "mean-groups": self.mean_groups, "allocation": self.allocation}
        given = [f"--{name}" for name, value in options.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} say in different ways what is kept: give one of them")
        return given[0] if given else ""

    def of(self, tokenizer: ImageTokenizer) -> int | GroupAllocator | None:
        """As `evaluate` takes it; all processes learn from the first."""
        from gsqtok.distributed import on_first
        from gsqtok.evaluation.run import check_groups
        from gsqtok.tokenizer.allocation import GroupAllocator
        from gsqtok.tokens.allocation import learn_allocation

        check_groups(tokenizer, self.groups)
        if self.allocation is not None:
            return GroupAllocator.load(self.allocation, tokenizer)
        if (mean := self.mean_groups) is None:
            return self.groups
        return on_first(None, lambda _: learn_allocation(tokenizer, self.images, mean, self.size).cpu())


def _file_bits(
    files: Literal["static", "adaptive"] | None, prior: str | None
) -> Callable[[ImageTokenizer], Bits] | None:
    """What counts the bits of a tokenizer's files; None: they are not asked for."""
    if not (files or prior):
        return None
    from gsqtok.generation import Compressor, Prior

    own = Prior.from_pretrained(prior) if prior else None
    return lambda tokenizer: Compressor(tokenizer, own, files, device=tokenizer.device).bits


def _refuse_with_tokbench(asked: dict[str, Any]) -> None:
    """Refuse what asks for more than the text and the faces that TokBench measures."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("tokbench runs in one process: leave torchrun out")
    for name, value in asked.items():
        if value:
            raise ValueError(f"tokbench measures text and faces alone: leave --{name.replace('_', '-')} out")


def _tokbench(
    model: str | None,
    source: str,
    size: int,
    precision: str,
    tile: int | None,
    device: str | None,
    allow_code: bool,
    output: str | None,
) -> None:
    """Measure what TokBench's folder has annotations of."""
    from gsqtok.evaluation.tokbench import DocTRReader, InsightFace, evaluate_tokbench, read_annotations

    images = read_annotations(source)
    _, reconstruct, record, where = _subject(model, precision, tile, None, None, device, allow_code)
    reader = DocTRReader(where) if any(image.words for image in images) else None
    faces = InsightFace() if any(image.faces for image in images) else None
    with progress("measuring") as bar:
        task = bar.add_task("", total=len(images))
        result = evaluate_tokbench(
            reconstruct,
            source,
            model=record(),
            size=size,
            reader=reader,
            faces=faces,
            device=where,
            on_progress=lambda done: bar.advance(task, done),
        )
    result.environment["command"] = options.command
    console.print(_metrics(result))
    console.print(_circumstances(result))
    if output:
        result.save(output)


@contextmanager
def _processes(device: str | None) -> Iterator[tuple[int, int, str | None]]:
    """Rank, number of processes, and device: one process, or those of torchrun, each on a device of its own."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield 0, 1, device
        return
    import torch
    from accelerate import PartialState

    # where there is no GPU accelerate must be told, or it takes every process for the only one
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    if not state.is_main_process:  # one of them is enough to hear from
        logging.disable(logging.WARNING)
        messages.quiet = True
    try:
        yield state.process_index, state.num_processes, str(state.device)
    finally:
        state.destroy_process_group()


def _features(name: str | None, weights: str | None) -> FeatureNetwork | None:
    """The network asked for, fetched if need be; by default Inception v3 where its weights are."""
    from gsqtok.evaluation import build_features

    if name == "none":
        return None
    if name or weights:
        return build_features(name or "inception", weights)
    try:
        return build_features("inception", download=False)
    except (FileNotFoundError, ImportError) as error:
        messages.print(f"left out: {error} (--features inception fetches it, none keeps this quiet)", soft_wrap=True)
        return None


def _perceptual(names: Sequence[str] | None) -> list[ImageDistance]:
    from gsqtok.evaluation import ImageDistance

    if names is not None:
        return [ImageDistance(name, download=True) for name in names]
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


def _metrics(result: Result) -> Table:
    from rich.table import Table

    table = Table("metric", "value")
    table.columns[1].justify = "right"
    for name, value in result.metrics.items():
        table.add_row(name, "not defined" if value != value else f"{value:.6g}")
    return table


def _circumstances(result: Result) -> Table:
    """What was measured, and how."""
    from rich.table import Table

    model, data, protocol, where = result.model, result.data, result.protocol, result.environment
    table = Table("measured", "")
    identity = f"{model['fingerprint'][:12]}, {model['precision']}" if model["fingerprint"] else model["version"]
    kept = f", {model['groups']} groups of a position" if model.get("groups") else ""
    if mean := model.get("mean_groups"):
        kept = f", bits of {mean:g} groups a position on average"
    tiles = f", in tiles of {model['tile']}" if model.get("tile") else ""
    table.add_row("model", f"{model['name']} ({identity}{kept}{tiles})")
    if not model["fingerprint"]:
        over = sum(bits > model["bits_per_pixel"] for bits in result.per_image.get("bits_per_pixel", []))
        more = f"; {over:,} files are larger at the lowest quality" if over else ""
        table.add_row("files", f"at most {model['bits_per_pixel']:g} bits/px{more}")
    split = f" {data['split']}" if data["split"] else ""
    table.add_row(
        "images", f"{data['images']:,} of {data['source']}{split} ({(data['fingerprint'] or 'TokBench')[:12]})"
    )
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
