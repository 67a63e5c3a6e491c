"""Tokenizing a source: plan, encode what is not done yet, finish."""

from __future__ import annotations

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

from gsqtok import forkserver
from gsqtok.acceleration.tiled import check_tile
from gsqtok.data.workers import processors
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokens import engines, manifest
from gsqtok.tokens.chunks import Decode, EncodedChunk, Task
from gsqtok.tokens.encode import NATIVE_SIDE, Encode
from gsqtok.tokens.plan import Plan, Unit, chunk_images, load_or_make, make_units
from gsqtok.tokens.progress import RunProgress
from gsqtok.tokens.shards import shard_schema, shard_table
from gsqtok.tokens.sources import ImageSource, open_images
from gsqtok.tokens.views import Views

CARRIED = ("label", "caption")
_WRITERS = 3  # threads; compressing takes one about as long as a fast GPU takes to encode, or longer on busy cores
_WRITING = 4  # shards waiting to be written


@dataclass(frozen=True)
class RunOptions:
    """How to tokenize.

    Attributes:
        views: what to make of each image.
        split: of the source, where it has several.
        carry: columns of the source to carry along, where it has them.
        shard_size: images in a shard, at most.
        batch_size: None: found by trying.
        workers: processes that decode; None: one for each processor of this process's share.
        precision: "float32" or "bfloat16".
        compile: run the encoder through ``torch.compile``.
        tile: as ``ImageTokenizer.encode`` takes it, for images too large for the device; None: whole images.
        max_pixels: larger images are rejected; None: those above Pillow's limit, 89 million.
        engine: "local" (also under torchrun) or "ray".
        ray_address: of a Ray cluster; None starts Ray on this machine.
    """

    views: Views = field(default_factory=Views)
    split: str | None = None
    carry: Sequence[str] = CARRIED
    shard_size: int = 8192
    batch_size: int | None = None
    workers: int | None = None
    precision: str = "float32"
    compile: bool = False
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
            if self.compile:
                raise ValueError("tiles run layer by layer, which is not compiled: leave out tile or compile")
        if self.engine not in ("local", "ray"):
            raise ValueError(f"engine must be 'local' or 'ray', got {self.engine!r}")


@dataclass(frozen=True)
class RunResult:
    """What one process did.

    Attributes:
        figures: see ``RunProgress.figures``; ``waiting`` is the share of the time that no decoded image was there
            (a GPU may still have had two chunks to work on).
        manifest: of the whole data set; None while other processes are still at work.
        workers: processes that decoded.
    """

    figures: dict[str, Any]
    manifest: dict[str, Any] | None
    workers: int


def tokenize(
    tokenizer: ImageTokenizer, source: str | Path, output: str | Path, options: RunOptions, *, model: str | None = None
) -> RunResult:
    """Write the tokens of a source's images as a token data set, or go on with one that is not finished.

    The source is cut into units of ``shard_size`` images, one shard each. Of W processes started by torchrun, rank r
    takes the units r, r + W, ...; they do not talk to each other: a unit is done when its files are there. So a killed
    process loses the unit in hand, and the same command, with any number of processes, goes on.

    Processes that decode import the script that calls this, which must therefore do so below
    ``if __name__ == "__main__":``, or ask for no ``workers``.

    Args:
        tokenizer: on its device; on CUDA it is optimized in place, to bfloat16 if the options say so.
        source: see ``open_images``.
        output: a folder.
        options: how.
        model: where the tokenizer came from, noted in the manifest.

    Raises:
        ValueError: the folder was begun with another tokenizer, source or option; the source holds no images.
        OSError: the source or the output is out of reach, or the disk is full.
    """
    if options.engine == "local":
        forkserver.start(options.workers)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    images = open_images(source, options.split, options.carry)
    header = manifest.header(tokenizer, options.views.settings())
    settings = _settings(tokenizer, images, options)
    side = options.views.size or NATIVE_SIDE
    make_encode = functools.partial(
        Encode,
        side=side,
        precision=options.precision,
        compile=options.compile,
        tile=options.tile,
        shapes_vary=options.views.crop == "none",
    )
    encode: Encode | None = None

    def make() -> Plan:
        nonlocal encode
        units = make_units(images, options.shard_size, settings["chunk_size"])
        encode = make_encode(tokenizer, batch_size=options.batch_size)
        return Plan(settings, encode.batch_size, units)

    plan = load_or_make(folder, settings, make, first=rank == 0)
    schema = shard_schema(header["codebook_size"], images.fields, header)
    done = manifest.done_units(folder, plan)
    own = [unit for unit in plan.units[rank::world] if unit.number not in done]
    tasks = [Task(unit.number, i, images.chunk(span)) for unit in own for i, span in enumerate(unit.spans)]
    decode = Decode(options.views, tokenizer.factor, options.max_pixels)
    workers, waiting = _workers(options, len(tasks)), engines.Waiting()
    batch_size = options.batch_size or plan.batch_size
    if options.engine == "ray":
        make_there = functools.partial(_encode_there, _RemoteModel.of(tokenizer), make_encode, batch_size)
        chunks = (
            engines.ray(tasks, decode, make_there, options.workers or 0, options.ray_address) if tasks else iter(())
        )
    else:
        encode = encode or make_encode(tokenizer, batch_size=batch_size)
        chunks = engines.local(tasks, decode, encode, workers, waiting)
    with RunProgress(folder, sum(unit.images for unit in own), rank) as progress:
        _write_units(folder, plan, own, _counted(chunks, progress), schema)
        figures = progress.figures()
    figures["waiting"] = round(waiting.seconds / max(figures["seconds"], 1e-3), 4)
    whole = None
    if len(manifest.done_units(folder, plan)) == len(plan.units):
        whole = manifest.finish(folder, plan, header | {"model": model, "source": str(source)})
    return RunResult(figures, whole, workers)


def _settings(tokenizer: ImageTokenizer, images: ImageSource, options: RunOptions) -> dict[str, Any]:
    """All that the rows depend on, under the names by which a refusal calls them."""
    side = options.views.size or 2 * NATIVE_SIDE  # images that keep their size may well be photos
    chunk = chunk_images(side, options.views.number, options.shard_size)
    settings = {
        "format": manifest.FORMAT,
        "model": tokenizer.fingerprint(),
        "source": images.digest,
        "columns": [[field.name, str(field.type)] for field in images.fields],
        "shard size": options.shard_size,
        "chunk_size": chunk if options.tile is None else max(1, chunk // 8),  # images for tiles are large
        "precision": options.precision,
        "compile": options.compile,
        "tile": options.tile,  # the same tokens up to rounding, which moves those at the border of two codewords
        "max pixels": options.max_pixels,
        **options.views.settings(),
    }
    return json.loads(json.dumps(settings))


def _workers(options: RunOptions, tasks: int) -> int:
    if options.workers is not None:
        return options.workers
    share = processors()
    return min(share, tasks) if share > 1 else 0


def _counted(chunks: Iterator[EncodedChunk], progress: RunProgress) -> Iterator[EncodedChunk]:
    for chunk in chunks:
        progress.add(chunk)
        yield chunk


def _write_units(
    folder: Path, plan: Plan, own: Sequence[Unit], chunks: Iterator[EncodedChunk], schema: pa.Schema
) -> None:
    """Gather the rows of chunks, in whatever order, and write each unit when it is whole, in a thread.

    Rows are made here, chunk by chunk: a thread that runs Python would hold up the one that keeps the device busy.
    """
    units = {unit.number: unit for unit in own}
    gathered: dict[int, dict[int, tuple[pa.Table, list[tuple[str, str]]]]] = {}
    writing: list[Future[None]] = []
    with ThreadPoolExecutor(_WRITERS) as writer:
        for chunk in chunks:
            unit, parts = units[chunk.unit], gathered.setdefault(chunk.unit, {})
            parts[chunk.index] = shard_table(chunk, schema), chunk.rejects
            if len(parts) == len(unit.spans):
                del gathered[chunk.unit]
                tables, rejects = zip(*(parts[i] for i in range(len(parts))), strict=True)
                rows, rejects = pa.concat_tables(tables), list(itertools.chain.from_iterable(rejects))
                writing.append(writer.submit(manifest.write_part, folder, unit, len(plan.units), rows, rejects))
            while writing and (writing[0].done() or len(writing) > _WRITING):
                writing.pop(0).result()  # raises what the writer met, such as a full disk
        for future in writing:
            future.result()


@dataclass(frozen=True)
class _RemoteModel:
    """A tokenizer as bytes, for actors that may see no file of ours."""

    config: dict[str, Any]
    weights: bytes

    @classmethod
    def of(cls, tokenizer: ImageTokenizer) -> _RemoteModel:
        import dataclasses

        from safetensors.torch import save

        state = {name: value.cpu().contiguous() for name, value in tokenizer.state_dict().items()}
        return cls(dataclasses.asdict(tokenizer.config), save(state))

    def load(self) -> ImageTokenizer:
        from safetensors.torch import load

        from gsqtok.tokenizer import TokenizerConfig

        tokenizer = ImageTokenizer(TokenizerConfig.from_dict(self.config))
        tokenizer.load_state_dict(load(self.weights))
        return tokenizer.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _encode_there(model: _RemoteModel, make_encode: functools.partial, batch_size: int) -> Encode:
    return make_encode(model.load(), batch_size=batch_size)
