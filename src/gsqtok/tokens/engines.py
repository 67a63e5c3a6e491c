"""Who does the work: tasks to encoded chunks, in this process with its helpers, or on a Ray cluster.

Both engines decode and encode the same chunks with the same code, so both give the same rows.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from gsqtok.data.sources import ImageSource
from gsqtok.io import one_line
from gsqtok.tokens.chunk import Chunk, Decode, Task
from gsqtok.tokens.decoders import Decoders
from gsqtok.tokens.encode import Encode

AHEAD = 2  # chunks that a GPU has been given when the tokens of the first are fetched
RAY_MISSING = "--engine ray needs Ray Data: pip install 'gsqtok[ray]'"


@dataclass
class Waiting:
    """Seconds in which no decoded image was there; a GPU may still have had up to ``AHEAD`` chunks to work on."""

    seconds: float = 0.0


# Here


def local(
    source: ImageSource, tasks: Sequence[Task], decode: Decode, encode: Encode, workers: int, waiting: Waiting
) -> Iterator[Chunk]:
    """Decode in ``workers`` processes (0: this one), encode here; in the order of the tasks.

    Raises:
        RuntimeError: a decoding process died.
    """
    if not tasks:
        return
    ahead = AHEAD if encode.device.type == "cuda" else 0
    decoders = Decoders(source, tasks, decode, workers, encode.device, ahead)
    started: deque[Callable[[], Chunk]] = deque()
    try:
        for chunk in _timed(iter(decoders), waiting):
            started.append(encode.start(chunk))
            if len(started) > ahead:
                yield _finished(started, decoders)
        while started:
            yield _finished(started, decoders)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):  # of the loader itself, not of what it ran
            raise
        reason = one_line(error)
        raise RuntimeError(
            f"a decoding process died, for want of memory perhaps, or, in a script, of an "
            f"'if __name__ == \"__main__\":' ({reason}); repeat the command"
        ) from None


def _finished(started: deque[Callable[[], Chunk]], decoders: Decoders) -> Chunk:
    chunk = started.popleft()()
    decoders.release()
    return chunk


def _timed(chunks: Iterator[Chunk], waiting: Waiting) -> Iterator[Chunk]:
    while True:
        start = time.perf_counter()
        chunk = next(chunks, None)
        waiting.seconds += time.perf_counter() - start
        if chunk is None:
            return
        yield chunk


# Ray


def ray(
    source: ImageSource,
    tasks: Sequence[Task],
    decode: Decode,
    make_encode: Callable[[], Encode],
    workers: int,
    address: str | None,
) -> Iterator[Chunk]:
    """Ray Data: processes that decode on CPUs, actors that encode on GPUs (on CPUs where there is none).

    Ray holds the decoding back when the encoders are behind, and starts lost workers again with what they had in hand.
    Chunks come in any order.

    Args:
        source: of the images.
        tasks: what to do.
        decode: how to decode.
        make_encode: called once in each encoding actor.
        workers: processes that decode; 0: as many as there are processors.
        address: of a cluster ("auto" for the one this machine belongs to); None starts Ray here.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """
    with _started(address) as ray:
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        encoders = gpus or max(1, cpus // 4)
        decoders = workers or max(1, cpus - encoders)
        items = [{"task": pickle.dumps((task, source.reader(task.span)))} for task in tasks]
        packed = ray.data.from_items(items, override_num_blocks=len(tasks))
        decoded = packed.map_batches(
            _RayDecode,
            fn_constructor_args=(decode,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=decoders),
            num_cpus=1 if cpus > encoders else 0.5,
        )
        tokens = decoded.map_batches(
            _RayEncode,
            fn_constructor_args=(make_encode,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=encoders),
            num_gpus=1 if gpus else 0,
            num_cpus=0 if gpus or cpus <= encoders else 1,
        )
        for row in tokens.iter_rows():
            yield pickle.loads(row["tokens"])


@contextmanager
def _started(address: str | None) -> Iterator[Any]:
    """Ray, quiet; what was started here is shut down."""
    try:
        import ray.data
    except ModuleNotFoundError:
        raise ModuleNotFoundError(RAY_MISSING) from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    started_here = not ray.is_initialized()
    if started_here:
        dashboard = False if address is None else None
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        if started_here:
            ray.shutdown()


class _RayDecode:
    def __init__(self, decode: Decode) -> None:
        torch.set_num_threads(1)
        self.decode = decode

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"chunk": [pickle.dumps(self.decode(*pickle.loads(task)), protocol=5) for task in batch["task"]]}


class _RayEncode:
    def __init__(self, make_encode: Callable[[], Encode]) -> None:
        self.encode = make_encode()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"tokens": [pickle.dumps(self.encode(pickle.loads(chunk)), protocol=5) for chunk in batch["chunk"]]}
