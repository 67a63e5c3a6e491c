"""A prior as a coder: its probabilities in integers that are the same on every machine."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gsqtok.generation.arithmetic import frequencies
from gsqtok.generation.coder import DamagedError, Decoder, Encoder, Grid
from gsqtok.generation.prior import Prior

_ENTRIES = 2**22  # of frequencies that are computed at once
_BATCH = 16  # tiles that are decoded together


class PriorCoder:
    """Codes grids with a prior's probabilities.

    A grid larger than those that the prior was trained on is cut into tiles of that size, which do not know of each
    other: each is a stream of its own. Encoding takes one pass over a tile, decoding one for each position.

    Args:
        prior: with the parallel or the depth head.
        device: where the exact copy of it computes.

    Raises:
        ValueError: a masked prior, whose tokens have no order that a decoder could follow.
    """

    def __init__(self, prior: Prior, device: torch.device | str = "cpu") -> None:
        if prior.masked:
            raise ValueError("a masked prior cannot compress: it has no order to decode in; train one with head depth")
        self.prior = prior.exact().to(device)
        self.tile = prior.vocabulary.grid

    @torch.no_grad()
    def encode(self, grids: Sequence[Grid]) -> list[bytes]:
        """See `gsqtok.generation.coder.Coder`."""
        outputs = self.prior.embedding.outputs()
        return [self._encode(grid, outputs) for grid in grids]

    def _encode(self, grid: Grid, outputs: Tensor) -> bytes:
        streams = [self._tile(grid[rows, columns], outputs) for rows, columns in _tiles(grid.shape[:2], self.tile)]
        lengths = [struct.pack("<I", len(stream)) for stream in streams[:-1]]
        return b"".join([*lengths, *streams])

    def _tile(self, grid: Grid, outputs: Tensor) -> bytes:
        tokens = torch.from_numpy(np.ascontiguousarray(grid, np.int64)).to(self.prior.device)[None]
        positions, flat = self.prior.positions(tokens)[0], tokens.flatten(0, 2)
        encoder, groups, size = Encoder(), self.prior.vocabulary.groups, self.prior.vocabulary.codebook_size
        for x, own in zip(
            *(part.split(max(1, _ENTRIES // (groups * size))) for part in (positions, flat)), strict=True
        ):
            out = self.prior.head(x, own, self.prior.embedding)
            by_group = [
                frequencies(self.prior.embedding.logits(out[:, group], outputs, group)) for group in range(groups)
            ]
            encoder.each(own.flatten().cpu().numpy(), torch.stack(by_group, 1).flatten(0, 1).cpu().numpy())
        return encoder.finish()

    def decode(self, parts: Sequence[tuple[bytes, tuple[int, int]]]) -> list[Grid | DamagedError]:
        """See `gsqtok.generation.coder.Coder`; tiles of one shape are decoded together."""
        grids: list[Grid | DamagedError] = [
            np.zeros((*shape, self.prior.vocabulary.groups), np.int64) for _, shape in parts
        ]
        waiting: dict[tuple[int, int], list[tuple[int, slice, slice, bytes]]] = defaultdict(list)
        for number, (data, shape) in enumerate(parts):
            try:
                streams = _streams(data, shape, self.tile)
                for (rows, columns), stream in zip(_tiles(shape, self.tile), streams, strict=True):
                    tile = (rows.stop - rows.start, columns.stop - columns.start)
                    waiting[tile].append((number, rows, columns, stream))
            except DamagedError as error:
                grids[number] = error
        for tile, places in waiting.items():
            for first in range(0, len(places), _BATCH):
                batch = places[first : first + _BATCH]
                decoded = self._decode([stream for *_, stream in batch], tile)
                for (number, rows, columns, _), tokens in zip(batch, decoded, strict=True):
                    grid = grids[number]
                    if isinstance(tokens, DamagedError):
                        grids[number] = tokens
                    elif not isinstance(grid, DamagedError):
                        grid[rows, columns] = tokens
        return grids

    @torch.no_grad()
    def _decode(self, streams: list[bytes], tile: tuple[int, int]) -> list[Grid | DamagedError]:
        prior = self.prior
        decoders: list[Decoder | DamagedError] = [_opened(stream) for stream in streams]
        state = prior.begin(len(streams), tile)

        def pick(logits: Tensor) -> Tensor:
            table = frequencies(logits).cpu().numpy()
            return torch.tensor([_next(decoders, i, table[i]) for i in range(len(decoders))], device=prior.device)

        tokens: list[Tensor] = []
        for _ in range(tile[0] * tile[1]):
            x = prior.step(state, tokens[-1] if tokens else None)
            tokens.append(prior.head.pick(x, prior.embedding, state.outputs, pick))
        grids = torch.stack(tokens, 1).unflatten(1, tile).cpu().numpy()
        return [d if isinstance(d, DamagedError) else grid for d, grid in zip(decoders, grids, strict=True)]


def _opened(stream: bytes) -> Decoder | DamagedError:
    try:
        return Decoder(stream)
    except DamagedError as error:
        return error


def _next(decoders: list[Decoder | DamagedError], number: int, table: np.ndarray) -> int:
    """The next token of a stream; 0 once it is found to be damaged."""
    decoder = decoders[number]
    if isinstance(decoder, DamagedError):
        return 0
    try:
        return int(decoder.each(table[None])[0])
    except DamagedError as error:
        decoders[number] = error
        return 0


def _tiles(shape: Sequence[int], tile: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the tiles of a grid (h, w)."""
    for top in range(0, shape[0], tile[0]):
        for left in range(0, shape[1], tile[1]):
            yield slice(top, min(top + tile[0], shape[0])), slice(left, min(left + tile[1], shape[1]))


def _streams(data: bytes, shape: tuple[int, int], tile: tuple[int, int]) -> list[bytes]:
    """The streams of a grid's tiles."""
    number = -(-shape[0] // tile[0]) * -(-shape[1] // tile[1])
    start = 4 * (number - 1)
    if len(data) < start:
        raise DamagedError("the lengths of its tiles are cut off")
    lengths = struct.unpack(f"<{number - 1}I", data[:start])
    streams = []
    for length in lengths:
        streams.append(data[start : start + length])
        start += length
    if start > len(data):
        raise DamagedError("the lengths of its tiles are wrong")
    return [*streams, data[start:]]
