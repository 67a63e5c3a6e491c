"""Decoded chunks to tokens on a device, in batches whose size is found by trying."""

from __future__ import annotations

import logging
import time

import numpy as np
import torch
from torch import Tensor

from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokens.chunks import DecodedChunk, EncodedChunk, encoded

_logger = logging.getLogger("gsqtok.tokens")
CPU_BATCH = 8  # larger batches are no faster on a CPU
NATIVE_SIDE = 512  # pictures of any size share a batch of as many pixels as so large squares would
_LARGEST_BATCH = 512
_WORTHWHILE = 1.03  # a batch twice as large must be so many times as fast


class Encode:
    """Encodes chunks.

    Args:
        tokenizer: on its device, in evaluation mode; on CUDA it is optimized in place (``ImageTokenizer.optimize``).
        batch_size: squares of ``side`` x ``side`` pixels in a batch; of other shapes, as many pixels.
        side: see ``batch_size``.
        precision: of the encoder, "fp32" or "bf16"; the quantizer stays in float32.
        compile: run the encoder through ``torch.compile``.
        shapes_vary: pictures of many shapes will come, so that compiled code should be generic.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        *,
        batch_size: int | None = None,
        side: int = NATIVE_SIDE,
        precision: str = "fp32",
        compile: bool = False,
        shapes_vary: bool = False,
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be 'fp32' or 'bf16', got {precision!r}")
        self.tokenizer = tokenizer
        self.dtype = np.min_scalar_type(tokenizer.quantizer.codebook_size - 1)
        self.device = tokenizer.device
        self._autocast = precision == "bf16"
        if self.device.type == "cuda" and not compile:
            # No CUDA graphs: while one is recorded, the thread that pins the next pictures must not allocate.
            tokenizer.optimize(torch.bfloat16 if precision == "bf16" else torch.float32, cuda_graphs=False)
            self._autocast = False
        elif compile:
            tokenizer.encoder.to(memory_format=torch.channels_last)
            tokenizer.encoder.compile(dynamic=shapes_vary or None)
        self.side = side
        self.batch_size = batch_size or self._find_batch_size()

    def __call__(self, chunk: DecodedChunk) -> EncodedChunk:
        """Tokens of a chunk, whose pixels may already lie on the device."""
        chunk = chunk.on(chunk.pixels.to(self.device, non_blocking=True))
        grids: list[np.ndarray | str] = []
        for views in chunk.views():
            batch = max(1, self.batch_size * self.side**2 // (views.shape[1] * views.shape[2]))
            for part in views.split(batch):
                grids += self._grids(part)
        return encoded(chunk, grids)

    def tokens(self, views: Tensor) -> Tensor:
        """uint8 (n, H, W, 3) on the device -> (n, h, w, G) int64."""
        layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        images = views.permute(0, 3, 1, 2).to(torch.float32, memory_format=layout).div_(127.5).sub_(1)
        count = len(images)
        if count == 1 and images.shape[2:].numel() == self.tokenizer.factor**2:
            images = images.repeat(2, 1, 1, 1)  # torch refuses to normalise a single value, alone in its batch
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return self.tokenizer.encode(images)[:count]

    def _grids(self, views: Tensor) -> list[np.ndarray | str]:
        """The same as arrays; where memory does not suffice, in halves, and a single picture is given up."""
        try:
            return list(self.tokens(views).cpu().numpy().astype(self.dtype))
        except torch.cuda.OutOfMemoryError:
            pass  # outside the handler, or the traceback keeps the tensors
        torch.cuda.empty_cache()
        if len(views) == 1:
            height, width = views.shape[1:3]
            return [f"too large: {width} x {height} pixels do not fit in the memory of {self.device}"]
        half = len(views) // 2
        _logger.warning("a batch of %d x %s does not fit in memory: taking halves", len(views), tuple(views.shape[1:3]))
        return self._grids(views[:half]) + self._grids(views[half:])

    def _find_batch_size(self) -> int:
        """Double the batch while that pays."""
        if self.device.type != "cuda":
            return CPU_BATCH
        best, rate = 1, 0.0
        batch = 4
        while batch <= _LARGEST_BATCH:
            try:
                now = self.pictures_per_second(batch)
            except torch.cuda.OutOfMemoryError:
                break
            if now < rate * _WORTHWHILE:
                break
            best, rate = batch, now
            batch *= 2
        torch.cuda.empty_cache()
        return best

    def pictures_per_second(self, batch: int, seconds: float = 0.3) -> float:
        """Pictures a second in batches of this size, without reading or decoding."""
        views = torch.randint(256, (batch, self.side, self.side, 3), dtype=torch.uint8, device=self.device)
        self.tokens(views)  # compiles, and lets the libraries choose
        self.tokens(views)
        _wait(self.device)
        start, runs = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            self.tokens(views)
            _wait(self.device)
            runs += 1
        return runs * batch / elapsed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
