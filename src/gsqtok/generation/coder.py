"""Entropy coding of token grids by constriction's range coder, and frequencies that need no prior.

A coder turns the tokens of images into bytes and back. Its probabilities are integers, so that both directions compute
the same numbers on any machine.

Where positions keep nested groups of their own number, a grid has -1 in the place of the others. A ``mapped`` coder
codes the map of all numbers first (`gsqtok.tokenizer.allocation.MapModel`), and then only what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gsqtok.tokenizer.allocation import MapModel

Grid = NDArray[np.int64]
# 16 * 2 ** (k / 4), rounded: a level is a quarter of a bit. A floating-point power would differ between machines.
_QUARTERS = np.array([16, 19, 23, 27], dtype=np.int64)
LARGEST_CODEBOOK = 2**22  # constriction's probabilities have 24 bits, and each codeword gets one at least
_HIGHEST_LEVEL = 4 * 40
_ROWS = 2  # of tokens, after which adaptive frequencies take them in


class DamagedError(ValueError):
    """Bytes that are not what a coder has written."""


class Coder(Protocol):
    """What turns token grids into bytes and back."""

    def encode(self, grids: Sequence[Grid]) -> list[bytes]:
        """Grids (h, w, G), each of any h and w, to bytes."""

    def decode(self, parts: Sequence[tuple[bytes, tuple[int, int]]]) -> list[Grid | DamagedError]:
        """Bytes and the (h, w) of each grid back to grids (h, w, G); an error in place of a grid that is damaged."""


def load_constriction() -> Any:
    """The library of entropy coders.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import constriction
    except ImportError as error:
        raise ImportError("compressed files need constriction: pip install 'gsqtok[compress]'") from error
    return constriction


class Encoder:
    """A range encoder of one image."""

    def __init__(self) -> None:
        self._stream = load_constriction().stream
        self._encoder = self._stream.queue.RangeEncoder()
        self._family = self._stream.model.Categorical(perfect=False)

    def same(self, tokens: NDArray[Any], frequencies: NDArray[Any]) -> None:
        """Encode tokens (n,) that all have the integer frequencies (V,)."""
        if not len(tokens):
            return
        model = self._stream.model.Categorical(frequencies.astype(np.float64), perfect=False)
        self._encoder.encode(np.ascontiguousarray(tokens, np.int32), model)

    def each(self, tokens: NDArray[Any], frequencies: NDArray[Any]) -> None:
        """Encode tokens (n,), each with integer frequencies of its own: (n, V)."""
        self._encoder.encode(np.ascontiguousarray(tokens, np.int32), self._family, frequencies.astype(np.float64))

    def finish(self) -> bytes:
        """The bytes."""
        return self._encoder.get_compressed().astype("<u4").tobytes()


class Decoder:
    """A range decoder of one image.

    Raises:
        DamagedError: from any method, for bytes that no encoder has written.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise DamagedError("the bytes end within a word")
        self._stream = load_constriction().stream
        self._decoder = self._stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
        self._family = self._stream.model.Categorical(perfect=False)

    def same(self, number: int, frequencies: NDArray[Any]) -> NDArray[np.int32]:
        """Decode ``number`` tokens that all have the integer frequencies (V,)."""
        if not number:
            return np.empty(0, np.int32)
        model = self._stream.model.Categorical(frequencies.astype(np.float64), perfect=False)
        return self._decode(model, number)

    def each(self, frequencies: NDArray[Any]) -> NDArray[np.int32]:
        """Decode tokens, each with integer frequencies of its own: (n, V)."""
        return self._decode(self._family, frequencies.astype(np.float64))

    def _decode(self, *arguments: Any) -> NDArray[np.int32]:
        try:
            tokens: NDArray[np.int32] = self._decoder.decode(*arguments)
        except AssertionError as error:  # constriction's way to say so
            raise DamagedError("the bytes are not what an encoder writes") from error
        return tokens


def encode_map(encoder: Encoder, counts: NDArray[np.int64], groups: int) -> None:
    """Encode how many groups each position has: (h, w), from 1 to G."""
    model, numbers = MapModel(groups), counts[None]
    for row, column in np.ndindex(*counts.shape):
        context = model.context(numbers, row, column)
        encoder.same(numbers[:, row, column] - 1, model.frequencies(context)[0])
        model.update(context, numbers[:, row, column])


def decode_map(decoder: Decoder, shape: tuple[int, int], groups: int) -> NDArray[np.int64]:
    """The inverse: (h, w) int64."""
    model, numbers = MapModel(groups), np.zeros((1, *shape), np.int64)
    for row, column in np.ndindex(*shape):
        context = model.context(numbers, row, column)
        numbers[:, row, column] = decoder.same(1, model.frequencies(context)[0]) + 1
        model.update(context, numbers[:, row, column])
    found: NDArray[np.int64] = numbers[0]
    return found


def _kept(decoder: Decoder, shape: tuple[int, int], groups: int, mapped: bool) -> NDArray[np.bool_]:
    """Which tokens of a grid (h, w, G) there are; the map is read if there is one."""
    if not mapped:
        return np.ones((*shape, groups), np.bool_)
    there: NDArray[np.bool_] = np.arange(groups) < decode_map(decoder, shape, groups)[..., None]
    return there


class StaticFrequencies:
    """One table of frequencies for each group, which the file holds.

    Args:
        levels: (G, V) uint8, a codeword's frequency in quarters of a bit; 0: the codeword does not occur.
        mapped: whether positions have groups of their own number.
    """

    def __init__(self, levels: NDArray[np.uint8], mapped: bool = False) -> None:
        if levels.ndim != 2 or not levels.size or int(levels.max()) > _HIGHEST_LEVEL:
            raise DamagedError("the table of frequencies is not one")
        self.levels, self.mapped = levels, mapped
        steps = np.maximum(levels.astype(np.int64) - 1, 0)
        self.frequencies = np.where(levels > 0, _QUARTERS[steps % 4] << (steps // 4), 0)
        if not self.frequencies.sum(1).all():
            raise DamagedError("the table of frequencies is empty")

    @classmethod
    def of(cls, grids: Sequence[Grid], codebook_size: int, mapped: bool = False) -> StaticFrequencies:
        """The frequencies of these tokens; all alike where there are none."""
        groups = grids[0].shape[-1]
        counts = np.zeros((groups, codebook_size), np.int64)
        for grid in grids:
            for group in range(groups):
                own = grid[..., group].ravel()
                counts[group] += np.bincount(own[own >= 0] if mapped else own, minlength=codebook_size)
        counts[counts.sum(1) == 0] = 1  # a group that no position has kept
        levels = np.where(counts > 0, 1 + np.round(4 * np.log2(np.maximum(counts, 1))), 0)
        return cls(levels.astype(np.uint8), mapped)

    def encode(self, grids: Sequence[Grid]) -> list[bytes]:
        """See `Coder`."""
        return [self._encode(grid) for grid in grids]

    def _encode(self, grid: Grid) -> bytes:
        encoder = Encoder()
        if self.mapped:
            encode_map(encoder, (grid >= 0).sum(-1), grid.shape[-1])
        for group, frequencies in enumerate(self.frequencies):
            own = grid[..., group].ravel()
            encoder.same(own[own >= 0] if self.mapped else own, frequencies)
        return encoder.finish()

    def decode(self, parts: Sequence[tuple[bytes, tuple[int, int]]]) -> list[Grid | DamagedError]:
        """See `Coder`."""
        return [_or_error(self._decode, data, shape) for data, shape in parts]

    def _decode(self, data: bytes, shape: tuple[int, int]) -> Grid:
        decoder, groups = Decoder(data), len(self.frequencies)
        there, grid = _kept(decoder, shape, groups, self.mapped), np.full((*shape, groups), -1, np.int64)
        for group, frequencies in enumerate(self.frequencies):
            own = there[..., group]
            grid[own, group] = decoder.same(int(own.sum()), frequencies)
        return grid


class AdaptiveFrequencies:
    """Frequencies for each group that begin alike and follow the tokens of the image, two rows at a time.

    Nothing is stored, and every image can be decoded by itself.

    Args:
        groups: G.
        codebook_size: V.
        mapped: whether positions have groups of their own number.
    """

    def __init__(self, groups: int, codebook_size: int, mapped: bool = False) -> None:
        self.groups, self.codebook_size, self.mapped = groups, codebook_size, mapped

    def encode(self, grids: Sequence[Grid]) -> list[bytes]:
        """See `Coder`."""
        return [self._encode(grid) for grid in grids]

    def _encode(self, grid: Grid) -> bytes:
        encoder = Encoder()
        if self.mapped:
            encode_map(encoder, (grid >= 0).sum(-1), self.groups)
        frequencies = np.ones((self.groups, self.codebook_size), np.int64)
        for top in range(0, len(grid), _ROWS):
            rows = grid[top : top + _ROWS].reshape(-1, self.groups)
            for group, own in enumerate(frequencies):
                tokens = rows[:, group]
                tokens = tokens[tokens >= 0] if self.mapped else tokens
                encoder.same(tokens, own)
                np.add.at(own, tokens, 1)
        return encoder.finish()

    def decode(self, parts: Sequence[tuple[bytes, tuple[int, int]]]) -> list[Grid | DamagedError]:
        """See `Coder`."""
        return [_or_error(self._decode, data, shape) for data, shape in parts]

    def _decode(self, data: bytes, shape: tuple[int, int]) -> Grid:
        decoder = Decoder(data)
        frequencies = np.ones((self.groups, self.codebook_size), np.int64)
        there = _kept(decoder, shape, self.groups, self.mapped)
        grid = np.full((*shape, self.groups), -1, np.int64)
        for top in range(0, shape[0], _ROWS):
            rows, kept = grid[top : top + _ROWS], there[top : top + _ROWS]
            for group, own in enumerate(frequencies):
                tokens = decoder.same(int(kept[..., group].sum()), own)
                rows[kept[..., group], group] = tokens
                np.add.at(own, tokens, 1)
        return grid


def _or_error(decode: Any, data: bytes, shape: tuple[int, int]) -> Grid | DamagedError:
    try:
        grid: Grid = decode(data, shape)
        return grid
    except DamagedError as error:
        return error
