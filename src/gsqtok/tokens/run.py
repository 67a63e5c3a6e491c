"""Tokenizing a source: plan, encode what is not done yet, finish."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from gsqtok.acceleration.tiled import check_tile
from gsqtok.data import ImageSource, check_outside, open_source
from gsqtok.data.workers import processors, start_server
from gsqtok.distributed import alone
from gsqtok.io import sha256_of, write_bytes
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokenizer.allocation import GroupAllocator, check_mean_groups
from gsqtok.tokens import engines, manifest
from gsqtok.tokens.allocation import FILE as ALLOCATION
from gsqtok.tokens.allocation import learn_allocation
from gsqtok.tokens.chunk import Chunk, Decode, Task
from gsqtok.tokens.crops import Crops
from gsqtok.tokens.encode import NATIVE_SIDE, Encode
from gsqtok.tokens.plan import Plan, Unit, chunk_images, load_or_make, make_units
from gsqtok.tokens.progress import RunProgress
from gsqtok.tokens.shards import shard_schema, shard_table

EXTRA_COLUMNS = ("label", "caption")
_WRITERS = 3  # threads; compressing takes one about as long as a fast GPU takes to encode, or longer on busy cores
_WRITING = 4  # shards waiting to be written


@dataclass(frozen=True)
class RunOptions:
    """How to tokenize.

    Attributes:
        crops: what to make of each image.
        split: of the source, where it has several.
        columns: extra columns to copy from the source, where it has them.
        groups: of nested groups, how many of each position to keep; None: all.
        mean_groups: keep of each position what its image needs there, at bits of so many groups on average; how is
            learnt from some of the images, and written beside the shards.
        allocation: the file that another run wrote so, to choose as it did.
        shard_size: images in a shard, at most.
        batch_size: None: found by trying.
        workers: processes that decode; None: one for each processor of this process's share.
        precision: "float32" or "bfloat16".
        tile: as ``ImageTokenizer.encode`` takes it, for images too large for the device; None: whole images.
        max_pixels: larger images are skipped; None: those above Pillow's limit, 89 million.
        engine: "local" (also under torchrun) or "ray".
        ray_address: of a Ray cluster; None starts Ray on this machine.
    """

    crops: Crops = field(default_factory=Crops)
    split: str | None = None
    columns: Sequence[str] = EXTRA_COLUMNS
    groups: int | None = None
    mean_groups: float | None = None
    allocation: str | None = None
    shard_size: int = 8192
    batch_size: int | None = None
    workers: int | None = None
    precision: str = "float32"
    tile: int | None = None
    max_pixels: int | None = None
    engine: str = "local"
    ray_address: str | None = None

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch_size", "max_pixels"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")
        if self.tile is not None:
            check_tile(self.tile)
        if self.engine not in ("local", "ray"):
            raise ValueError(f"engine must be 'local' or 'ray', got {self.engine!r}")
        if sum(option is not None for option in (self.groups, self.mean_groups, self.allocation)) > 1:
            raise ValueError("groups, mean_groups and allocation say in three ways what is kept: give one of them")

    @property
    def by_position(self) -> bool:
        """Whether positions keep groups of their own number."""
        return self.mean_groups is not None or self.allocation is not None


@dataclass(frozen=True)
class RunResult:
    """What one process did.

    Attributes:
        metrics: see ``RunProgress.metrics``; ``waiting`` is the share of the time that no decoded image was there
            (a GPU may still have had two chunks to work on).
        manifest: of the whole data set; None while other processes are still at work.
        workers: processes that decoded.
    """

    metrics: dict[str, Any]
    manifest: dict[str, Any] | None
    workers: int


def tokenize(
    tokenizer: ImageTokenizer,
    source: str | Path | Sequence[str | Path],
    output: str | Path,
    options: RunOptions,
    *,
    model: str | None = None,
) -> RunResult:
    """Write the tokens of a source's images as a token data set, or go on with one that is not finished.

    The source is cut into units of ``shard_size`` images, one shard each. Of W processes started by torchrun, rank r
    takes the units r, r + W, ...; they do not talk to each other: a unit is done when its files are there. So a killed
    process loses the unit in hand, and the same command, with any number of processes, goes on.

    Processes that decode import the script that calls this, which must therefore do so below
    ``if __name__ == "__main__":``, or ask for no ``workers``.

    Args:
        tokenizer: on its device; on CUDA it is optimized in place, to bfloat16 if the options say so.
        source: see ``open_source``.
        output: a folder, outside the source.
        options: how.
        model: where the tokenizer came from, noted in the manifest.

    Raises:
        ValueError: the folder was begun with another tokenizer, source or option, or is being written by another run;
            the source holds no images, or none that can be read.
        OSError: the source or the output is out of reach, or the disk is full.
    """
    check_outside(source, output)
    _check_kept(tokenizer, options)
    if options.engine == "local":
        start_server(options.workers)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, rank, "gsqtok tokenize"):
        images = open_source(source, split=options.split, columns=options.columns)
        encoder = _Encoder(tokenizer, options)
        settings = _settings(tokenizer, images, options)

        def make() -> Plan:
            if options.by_position:
                _write_allocation(folder, tokenizer, images, options)
                encoder.groups = GroupAllocator.load(folder / ALLOCATION, tokenizer)
            units = make_units(images, options.shard_size, settings["chunk_size"])
            return Plan(settings, encoder.found_batch_size(), units)

        plan, allocation = load_or_make(folder, settings, make, first=rank == 0), None
        if options.by_position:
            encoder.groups = GroupAllocator.load(folder / ALLOCATION, tokenizer)
            allocation = {"file": ALLOCATION, "sha256": sha256_of(folder / ALLOCATION)}
        header = manifest.header(tokenizer, options.crops.settings(), options.groups, allocation)
        schema = shard_schema(header["codebook_size"], images.columns, header)
        done = manifest.done_units(folder, plan)
        own = [unit for unit in plan.units[rank::world] if unit.number not in done]
        tasks = [Task(unit.number, i, span) for unit in own for i, span in enumerate(unit.spans)]
        workers, waiting = _workers(options, len(tasks)), engines.Waiting()
        chunks = encoder.chunks(images, tasks, plan.batch_size, workers, waiting)
        with RunProgress(folder, sum(unit.images for unit in own), rank) as progress:
            _write_units(folder, plan, own, _counted(chunks, progress), schema)
            metrics = progress.metrics()
        metrics["waiting"] = round(waiting.seconds / max(metrics["seconds"], 1e-3), 4)
        whole = _finished(folder, plan, header | {"model": model, "source": str(source)})
    return RunResult(metrics, whole, workers)


def _check_kept(tokenizer: ImageTokenizer, options: RunOptions) -> None:
    """Refuse, before anything is written, groups that the tokenizer does not have."""
    tokenizer.quantizer.tokens_of(options.groups)
    if options.mean_groups is not None:
        check_mean_groups(tokenizer, options.mean_groups)
    if options.allocation is not None:
        GroupAllocator.load(options.allocation, tokenizer)


def _finished(folder: Path, plan: Plan, header: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest, if all units are done; a ValueError if no image could be read."""
    if len(manifest.done_units(folder, plan)) < len(plan.units):
        return None
    whole = manifest.finish(folder, plan, header)
    if not whole["images"]:
        skipped = folder / manifest.SKIPPED
        raise ValueError(f"none of the {whole['skipped']['rows']:,} images can be read: see {skipped}")
    return whole


class _Encoder:
    """Where and how tasks become tokens: here, with one encoder, or on a Ray cluster."""

    def __init__(self, tokenizer: ImageTokenizer, options: RunOptions) -> None:
        self._tokenizer, self._options = tokenizer, options
        # for Ray's actors, before it is optimized here
        self._plain = copy.deepcopy(tokenizer).cpu() if options.engine == "ray" else tokenizer
        self._here: Encode | None = None
        self.groups: int | GroupAllocator | None = options.groups

    @property
    def _make(self) -> functools.partial[Encode]:
        options = self._options
        return functools.partial(
            Encode,
            side=options.crops.size or NATIVE_SIDE,
            precision=options.precision,
            tile=options.tile,
            groups=self.groups,
        )

    def found_batch_size(self) -> int:
        """The batch size asked for, or found by trying."""
        self._here = self._make(self._tokenizer, batch_size=self._options.batch_size)
        return self._here.batch_size

    def chunks(
        self, source: ImageSource, tasks: list[Task], planned: int, workers: int, waiting: engines.Waiting
    ) -> Iterator[Chunk]:
        """Encode tasks, in batches of the size asked for or planned."""
        options = self._options
        decode = Decode(options.crops, self._tokenizer.factor or 1, options.max_pixels)
        batch_size = options.batch_size or planned
        if options.engine == "local":
            here = self._here or self._make(self._tokenizer, batch_size=batch_size)
            return engines.local(source, tasks, decode, here, workers, waiting)
        if not tasks:
            return iter(())
        there = functools.partial(_encode_there, self._plain, self._make, batch_size)
        return engines.ray(source, tasks, decode, there, options.workers or 0, options.ray_address)


def _encode_there(tokenizer: ImageTokenizer, make: functools.partial[Encode], batch_size: int) -> Encode:
    return make(tokenizer.to("cuda" if torch.cuda.is_available() else "cpu"), batch_size=batch_size)


def _settings(tokenizer: ImageTokenizer, images: ImageSource, options: RunOptions) -> dict[str, Any]:
    """All that the rows depend on, under the names by which a refusal calls them."""
    side = options.crops.size or 2 * NATIVE_SIDE  # images that keep their size may well be photos
    chunk = chunk_images(side, options.crops.number, options.shard_size)
    settings: dict[str, Any] = {
        "format": manifest.FORMAT,
        "model": tokenizer.tokens_fingerprint(),
        "source": images.digest,
        "columns": [[field.name, str(field.type)] for field in images.columns],
        "shard size": options.shard_size,
        "chunk_size": chunk if options.tile is None else max(1, chunk // 8),  # images for tiles are large
        "precision": options.precision,
        "tile": options.tile,  # the same tokens up to rounding, which moves those at the border of two codewords
        "max pixels": options.max_pixels,
        **options.crops.settings(),
    }
    if options.groups is not None:
        settings["groups"] = options.groups
    if options.mean_groups is not None:
        settings["mean groups"] = options.mean_groups
    if options.allocation is not None:
        settings["allocation"] = sha256_of(Path(options.allocation))
    return json.loads(json.dumps(settings))


def _write_allocation(folder: Path, tokenizer: ImageTokenizer, images: ImageSource, options: RunOptions) -> None:
    """Write how groups are chosen: learnt here, or as in the file that is named."""
    if options.allocation is not None:
        write_bytes(folder / ALLOCATION, Path(options.allocation).read_bytes())
    else:
        assert options.mean_groups is not None
        learn_allocation(tokenizer, images, options.mean_groups, options.crops.size).save(folder / ALLOCATION)


def _workers(options: RunOptions, tasks: int) -> int:
    if options.workers is not None:
        return options.workers
    share = processors()
    return min(share, tasks) if share > 1 else 0


def _counted(chunks: Iterator[Chunk], progress: RunProgress) -> Iterator[Chunk]:
    for chunk in chunks:
        progress.add(chunk)
        yield chunk


def _write_units(folder: Path, plan: Plan, own: Sequence[Unit], chunks: Iterator[Chunk], schema: pa.Schema) -> None:
    """Gather the rows of chunks, in whatever order, and write each unit when it is whole, in a thread.

    Rows are made here, chunk by chunk: a thread that runs Python would hold up the one that keeps the device busy.
    """
    units = {unit.number: unit for unit in own}
    gathered: dict[int, dict[int, tuple[pa.Table, list[tuple[str, str]]]]] = {}
    writing: list[Future[None]] = []
    with ThreadPoolExecutor(_WRITERS) as writer:
        for chunk in chunks:
            unit, parts = units[chunk.unit], gathered.setdefault(chunk.unit, {})
            parts[chunk.index] = shard_table(chunk, schema), chunk.skipped
            if len(parts) == len(unit.spans):
                del gathered[chunk.unit]
                tables, skipped = zip(*(parts[i] for i in range(len(parts))), strict=True)
                rows, reasons = pa.concat_tables(tables), list(itertools.chain.from_iterable(skipped))
                writing.append(writer.submit(manifest.write_part, folder, unit, len(plan.units), rows, reasons))
            while writing and (writing[0].done() or len(writing) > _WRITING):
                writing.pop(0).result()  # raises what the writer met, such as a full disk
        for future in writing:
            future.result()
