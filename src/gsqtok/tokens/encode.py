"""Decoded chunks to tokens on a device, in batches whose size is found by trying."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokens.chunk import Chunk
from gsqtok.tokens.plan import chunk_images

_logger = logging.getLogger("gsqtok.tokens")
CPU_BATCH = 8  # larger batches are no faster on a CPU
NATIVE_SIDE = 512  # images of any size share a batch of as many pixels as so large squares would
_LARGEST_BATCH = 512
_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # torch's unsigned types lack operators
NOT_FINITE = "the encoder produced NaN or infinity: its weights or the precision are not fit for use"
_RUNS = 4  # of a batch, at least, to time it
_WORTHWHILE = 1.03  # a batch twice as large must be so many times as fast


class Encode:
    """Encodes chunks.

    Args:
        tokenizer: on its device, in evaluation mode; on CUDA it is optimized in place (``ImageTokenizer.optimize``).
        batch_size: squares of ``side`` x ``side`` pixels in a batch; of other shapes, as many pixels.
        side: see ``batch_size``.
        precision: of the encoder, "float32" or "bfloat16"; the quantizer stays in float32.
        tile: as ``ImageTokenizer.encode`` takes it: pixels and feature maps then stay in host memory, and by default
            images that are larger than ``side`` x ``side`` go one by one.
        groups: as ``ImageTokenizer.encode`` takes it.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        *,
        batch_size: int | None = None,
        side: int = NATIVE_SIDE,
        precision: str = "float32",
        tile: int | None = None,
        groups: int | Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {precision!r}")
        self.tokenizer = tokenizer
        self.dtype = np.min_scalar_type(tokenizer.quantizer.codebook_size - 1)
        self.device = tokenizer.device
        self._autocast = precision == "bfloat16"
        self._copying = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        if self.device.type == "cuda":
            # No CUDA graphs: the host runs ahead of the device, which does not wait for kernels to be launched.
            tokenizer.optimize(torch.bfloat16 if precision == "bfloat16" else torch.float32, cuda_graphs=False)
            self._autocast = False
        self.side = side
        self.tile = tile
        self.groups = groups
        self.batch_size = batch_size or self._find_batch_size()

    def __call__(self, chunk: Chunk) -> Chunk:
        """Tokens of a chunk."""
        return self.start(chunk)()

    def start(self, chunk: Chunk) -> Callable[[], Chunk]:
        """Queue the work on a chunk; the result waits for it. On a CPU it is done at once.

        A GPU copies the pixels while it works on the chunk before, if they lie in pinned memory, which must be left
        alone until the result has been fetched.
        """
        if chunk.pixels is not None:
            chunk = chunk.on(self._copied(chunk.pixels))
        parts: list[tuple[Tensor, Tensor] | str] = []
        for crops in chunk.crops():
            batch = max(1, self.batch_size * self.side**2 // (crops.shape[1] * crops.shape[2]))
            for part in crops.split(batch):
                parts += self._parts(part)
        return functools.partial(self._fetched, chunk.on(None), parts, self._event())

    def _copied(self, pixels: Tensor) -> Tensor:
        """Pixels on the device, by a stream of their own; where they are, with a tile."""
        device = self.tokenizer.input_device(self.tile)
        if device.type != "cuda" or self._copying is None:
            return pixels.to(device)
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copying):
            pixels = pixels.to(device, non_blocking=True)
        current.wait_stream(self._copying)
        pixels.record_stream(current)
        return pixels

    def _fetched(self, chunk: Chunk, parts: list[tuple[Tensor, Tensor] | str], event: torch.cuda.Event | None) -> Chunk:
        if event is not None:
            event.synchronize()
        grids: list[np.ndarray | str] = []
        for part in parts:
            if isinstance(part, str):
                grids.append(part)
                continue
            tokens, finite = part
            if not finite:
                raise ValueError(NOT_FINITE)
            grids += list(tokens.numpy() if callable(self.groups) else tokens.numpy().view(self.dtype))
        return chunk.encoded(grids)

    def tokens(self, crops: Tensor) -> Tensor:
        """uint8 (n, H, W, 3) on the device -> (n, h, w, G) int64, -1 where the encoder's output is not finite.

        With a tile, crops and tokens are on the CPU.
        """
        layout = torch.channels_last if crops.is_cuda else torch.contiguous_format
        images = crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=layout).div_(127.5).sub_(1)
        count = len(images)
        if count == 1 and self.tokenizer.grid(*images.shape[2:]) == (1, 1):
            images = images.repeat(2, 1, 1, 1)  # torch refuses to normalise a single value, alone in its batch
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return self.tokenizer.encode(images, groups=self.groups, tile=self.tile, check=False)[:count]

    def _parts(self, crops: Tensor) -> list[tuple[Tensor, Tensor] | str]:
        """The same in the signed type of the size of ``dtype``, on its way to the host, and whether all are finite.

        Where memory does not suffice, in halves, and a single image is given up.
        """
        try:
            tokens = self.tokens(crops)
            if callable(self.groups):  # with -1 in the place of what is left out, so in a type that has it
                return [(self._to_host(tokens), self._to_host((tokens[..., 0] >= 0).all()))]
            finite = (tokens >= 0).all()
            return [(self._to_host(tokens.to(_SIGNED[self.dtype.itemsize])), self._to_host(finite))]
        except torch.cuda.OutOfMemoryError:
            pass  # outside the handler, or the traceback keeps the tensors
        torch.cuda.empty_cache()
        if len(crops) == 1:
            height, width = crops.shape[1:3]
            return [f"too large: {width} x {height} pixels do not fit in the memory of {self.device}"]
        half = len(crops) // 2
        _logger.warning("a batch of %d x %s does not fit in memory: taking halves", len(crops), tuple(crops.shape[1:3]))
        return self._parts(crops[:half]) + self._parts(crops[half:])

    def _to_host(self, values: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return values.cpu()
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return host.copy_(values, non_blocking=True)

    def _find_batch_size(self) -> int:
        """Double the batch while that pays; none is larger than a chunk."""
        if self.tile is not None:
            return 1
        if self.device.type != "cuda":
            return CPU_BATCH
        best, rate = 1, 0.0
        batch = 4
        while batch <= chunk_images(self.side, 1, _LARGEST_BATCH):
            try:
                now = self.images_per_second(batch)
            except torch.cuda.OutOfMemoryError:
                break
            if now < rate * _WORTHWHILE:
                break
            best, rate = batch, now
            batch *= 2
        torch.cuda.empty_cache()
        return best

    def images_per_second(self, batch: int, seconds: float = 0.1) -> float:
        """Images a second in batches of this size, without reading or decoding."""
        crops = torch.randint(256, (batch, self.side, self.side, 3), dtype=torch.uint8, device=self.device)
        self.tokens(crops)  # lets the libraries choose
        self.tokens(crops)
        _wait(self.device)
        start, runs, before = time.perf_counter(), 0, None
        while runs < _RUNS or time.perf_counter() - start < seconds:
            self.tokens(crops)
            event = self._event()
            if before is not None:  # one batch is launched while the one before is computed
                before.synchronize()
            before = event
            runs += 1
        _wait(self.device)
        return runs * batch / (time.perf_counter() - start)

    def _event(self) -> torch.cuda.Event | None:
        """Happens when the device has done all that it has been given; who waits leaves the processor to others."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
