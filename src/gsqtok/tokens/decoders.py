"""Processes that decode chunks into memory that they share with the one that encodes."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gsqtok.data.loader import as_it_is
from gsqtok.data.sources import ImageSource, Reader
from gsqtok.data.workers import START_METHOD, end_with_parent
from gsqtok.tokens.chunk import Chunk, Decode, Task

PREFETCH = 2  # chunks each decoding process prepares ahead
_SHARED_MEMORY = Path("/dev/shm")
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device
_logger = logging.getLogger("gsqtok.tokens")


class Decoders:
    """Iterates over decoded chunks, in the order of the tasks; each must be given back by ``release``.

    Pixels lie in slots of one block of shared memory. Mapping and unmapping new memory for each chunk would take the
    encoding process longer than a GPU needs to encode it; and memory that stays can be pinned once.

    Args:
        source: of the images.
        tasks: what to decode.
        decode: how.
        workers: processes; 0: this one.
        device: the pixels are for; memory is pinned for CUDA.
        held: chunks that are not given back before the next is asked for, at most.

    Raises:
        OSError: the system's shared memory does not suffice.
    """

    def __init__(
        self,
        source: ImageSource,
        tasks: Sequence[Task],
        decode: Decode,
        workers: int,
        device: torch.device,
        held: int,
    ) -> None:
        slots = min(max(1, workers * PREFETCH) + 1 + held, len(tasks) + 1)
        size = max((decode.room(task) for task in tasks), default=0)
        _require_shared_memory(slots * size, workers)
        self.memory = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(slots * size))
        self.memory = self.memory.view(slots, size)
        self._free = deque(range(slots))
        self._held: deque[int] = deque()
        self._device = device
        self._loader = DataLoader(
            _Decoding(decode, self.memory),  # tasks travel as the "indices": what is done leaves no trace in memory
            sampler=self._places(source, tasks),
            batch_size=None,
            num_workers=workers,
            collate_fn=as_it_is,
            prefetch_factor=PREFETCH if workers else None,
            worker_init_fn=end_with_parent,  # the loader's own watch is over the server that forked them
            multiprocessing_context=START_METHOD if workers else None,
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Chunk]:
        chunks = iter(self._loader)  # starts the processes, which decode while the memory is pinned
        with _pinned(self.memory, self._device):
            for slot, chunk in chunks:
                self._held.append(slot)
                yield chunk if chunk.pixels is not None else chunk.on(self.memory[slot, : chunk.size])

    def release(self) -> None:
        """The chunk that has been held longest is no longer needed."""
        self._free.append(self._held.popleft())

    def _places(self, source: ImageSource, tasks: Sequence[Task]) -> Iterator[tuple[int, Task, Reader]]:
        for task in tasks:
            yield self._free.popleft(), task, source.reader(task.span)


def _require_shared_memory(size: int, workers: int) -> None:
    """Containers often have little; writing beyond it would end a process without a word."""
    if not _SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if size > free:
        fewer = f"use fewer --workers than {workers}, or " if workers > 1 else ""
        raise OSError(
            f"decoding needs {size / 1e6:,.0f} MB of shared memory and {_SHARED_MEMORY} has {free / 1e6:,.0f}: "
            f"{fewer}enlarge it (docker run --shm-size {-(-size // 2**30) + 1}g)"
        )


class _Decoding(Dataset[tuple[int, Chunk]]):
    def __init__(self, decode: Decode, memory: Tensor) -> None:
        self.decode = decode
        self.memory = memory

    def __getitem__(self, place: tuple[int, Task, Reader]) -> tuple[int, Chunk]:
        slot, task, reader = place
        chunk = self.decode(task, reader, self.memory[slot])
        inside = chunk.pixels is not None and chunk.pixels.data_ptr() == self.memory[slot].data_ptr()
        return slot, chunk.on(None) if inside else chunk  # larger than planned: it travels by itself


@contextlib.contextmanager
def _pinned(memory: Tensor, device: torch.device) -> Iterator[None]:
    """Pin memory for copies to a GPU; where the system refuses, copies are slower."""
    if device.type != "cuda" or not memory.numel():
        yield
        return
    runtime = torch.cuda.cudart()
    status = runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, _PORTABLE)
    if status != runtime.cudaError.success:
        _logger.warning("%d MB of shared memory cannot be pinned (%s)", memory.nbytes // 2**20, status)
        with contextlib.suppress(RuntimeError):  # or the next kernel would be blamed for it
            torch.zeros(1, device=device)
    try:
        yield
    finally:
        if status == runtime.cudaError.success:
            torch.cuda.synchronize(device)
            runtime.cudaHostUnregister(memory.data_ptr())
