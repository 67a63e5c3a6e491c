"""gsqtok tokenize."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from gsqtok.cli.options import check_output_folder, console, load_model

if TYPE_CHECKING:
    from gsqtok.tokens.run import RunResult

# Seconds and images after which the time spent waiting says something; before, it is spent on starting processes.
_TELLING_SECONDS, _TELLING_IMAGES = 30, 1000


def tokenize(
    model: str | None,
    source: str,
    *,
    output: str,
    split: str | None = None,
    size: int = 256,
    crop: Literal["none", "center", "ten"] | None = None,
    resize: int | None = None,
    flip: bool = False,
    groups: int | None = None,
    mean_groups: float | None = None,
    allocation: str | None = None,
    resample: Literal["bicubic", "lanczos"] = "bicubic",
    fast_resize: bool = False,
    max_pixels: int | None = None,
    columns: list[str] = ["label", "caption"],  # noqa: B006 (only read)
    shard_size: int = 8192,
    batch_size: int | None = None,
    workers: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    tile: int | None = None,
    device: str | None = None,
    allow_code: bool = False,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
) -> None:
    """Turn images into a token data set: resumable parquet shards for generative models.

    Hugging Face datasets and gsqtok.TokenDataset read the shards. Beside them are a manifest with counts and hashes,
    and skipped.parquet with the images that could not be read, and why.

    A run that was stopped in any way goes on when the same command is given again, with any number of processes and
    either engine. Then: gsqtok tokens verify tokens/, and in Python gsqtok.TokenDataset("tokens/").

    For a few images in one .npz file, which numpy reads and gsqtok decode turns back, there is gsqtok encode.

    Args:
        output: the folder of the token data set
        size: side of the crops in pixels; 0 keeps the images' size
        crop: center, ten (corners, centre and their mirror images), or none, which keeps the aspect ratio (default:
            center, and none with --size 0)
        resize: short side before cropping (default: --size; for ten crops 1.1 times that)
        flip: add the mirror image of each
        groups: of a tokenizer with nested groups, how many of each position to keep
        mean_groups: likewise, but each position keeps what its image needs there, so that on average a position takes
            the bits of so many groups; learnt from 256 of the images, and kept in allocation.safetensors
        allocation: an allocation.safetensors of another data set, to choose as it did
        resample: filter for resizing
        fast_resize: resize with torch instead of Pillow; pixels differ by at most 2 of 255
        max_pixels: skip larger images (default: above 89 million pixels)
        columns: extra columns of the source that go into the shards, where it has them
        shard_size: images in a shard, at most
        batch_size: images that are encoded together (default: found by trying)
        workers: processes that decode images (default: one for each processor)
        precision: of the encoder
        engine: local, also under torchrun; or a Ray cluster
        ray_address: of a Ray cluster, or 'auto' (default: Ray on this machine alone)

    Example:
          gsqtok tokenize runs/mine imagenet/ --split train -o imagenet-tokens/
          gsqtok tokenize runs/mine "shards/{000..146}.tar" -o tokens/ --crop ten --precision bfloat16
          gsqtok tokenize runs/mine photos/ -o tokens/ --size 512 --crop none        # native aspect
          gsqtok tokenize runs/nested train/ -o tokens/ --mean-groups 2.5            # bits where they are needed
          torchrun --nproc-per-node 8 -m gsqtok tokenize runs/mine imagenet/ -o tokens/
          gsqtok tokenize runs/mine imagenet/ -o tokens/ --engine ray --ray-address auto
    """
    from gsqtok.data.workers import start_server

    if engine == "local":
        start_server(workers)  # first, for its imports take as long as those of this process
    from gsqtok.tokens import run
    from gsqtok.tokens.crops import Crops

    if ray_address and engine != "ray":
        raise ValueError("--ray-address goes with --engine ray")
    check_output_folder(output, source=source)
    tokenizer = load_model(model, device or _own_device(), allow_code=allow_code)
    options = run.RunOptions(
        crops=Crops(size or None, crop or ("center" if size else "none"), resize, flip, resample, fast_resize),
        split=split,
        columns=tuple(columns),
        groups=groups,
        mean_groups=mean_groups,
        allocation=allocation,
        shard_size=shard_size,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        tile=tile,
        max_pixels=max_pixels,
        engine=engine,
        ray_address=ray_address,
    )
    for line in _summary(run.tokenize(tokenizer, source, output, options, model=model), output):
        console.print(line)


def _own_device() -> str | None:
    """This rank's device under torchrun."""
    if "LOCAL_RANK" not in os.environ:
        return None
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # kernels start on the current device
    return f"cuda:{os.environ['LOCAL_RANK']}"


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
        telling = metrics["seconds"] > _TELLING_SECONDS and metrics["images"] >= _TELLING_IMAGES
        if telling and result.workers and metrics["waiting"] > 0.15:
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
