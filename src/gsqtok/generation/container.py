"""The file of compressed token grids: what it was made with, an index, and a record for each image.

    magic, length of the header, header, CRC-32 of the header
    a record for each image: the coder's bytes, 8 bytes of BLAKE2b over the image's name, size and tokens, CRC-32
    the header once more, its CRC-32, its length, magic

The header holds fingerprints of the tokenizer and the prior, the coder, the images' names, sizes, grids and lengths of
their records, and the static frequencies if there are any. It is there twice, so that damage at one place costs one
image at most. The CRC tells damage before anything is decoded, the digest tells tokens that were decoded wrongly, such
as by a prior that computes other probabilities.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from gsqtok.generation.coder import LARGEST_CODEBOOK, DamagedError, Grid

MAGIC = b"GSQ\x01"
STATIC, ADAPTIVE, PRIOR = 0, 1, 2
_MAPPED = 16  # added to the coder
_FIXED = struct.Struct("<B8s8sHIIII")  # coder, tokenizer, prior, G, V, images, lengths of names and of the index
_TAIL = 12  # digest and CRC of a record
_LARGEST_HEADER = 2**28  # bytes, unpacked too
_MOST_POSITIONS = 2**22  # of an image
_MOST_GROUPS = 1024


class CompressedFileError(ValueError):
    """A file that is not one of compressed tokens, or whose header is damaged in both places."""


@dataclass
class Header:
    """What a file says of itself.

    Attributes:
        tokenizer: the first 16 hexadecimal digits of the tokenizer's ``tokens_fingerprint``.
        prior: likewise; empty without a prior.
        coder: STATIC, ADAPTIVE or PRIOR.
        groups: tokens of a position, G.
        codebook_size: V.
        names: of the images, each once.
        sizes: (N, 2), height and width in pixels.
        grids: (N, 2), rows and columns of tokens.
        lengths: (N,), bytes of each record.
        levels: (G, V) for static frequencies.
        mapped: whether positions have groups of their own number, of which each record holds the map.
    """

    tokenizer: str
    prior: str
    coder: int
    groups: int
    codebook_size: int
    names: list[str] = field(default_factory=list)
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    grids: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    levels: NDArray[np.uint8] | None = None
    mapped: bool = False

    def to_bytes(self) -> bytes:
        """The header as it is written."""
        names = _deflate("\0".join(self.names).encode("utf-8", "surrogateescape"))
        index = _deflate(np.column_stack([self.sizes, self.grids, self.lengths]).T.astype("<u4").tobytes())
        table = b"" if self.levels is None else _deflate(self.levels.tobytes())
        fingerprints = (bytes.fromhex(self.tokenizer), bytes.fromhex(self.prior or "0" * 16))
        shape = (self.groups, self.codebook_size, len(self.names))
        return (
            _FIXED.pack(self.coder + _MAPPED * self.mapped, *fingerprints, *shape, len(names), len(index))
            + names
            + index
            + table
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Header:
        """The inverse; raises ValueError for anything that `to_bytes` does not write."""
        number, tokenizer, prior, groups, codebook_size, images, of_names, of_index = _FIXED.unpack_from(data)
        mapped, coder = number >= _MAPPED, number % _MAPPED
        if number not in (STATIC, ADAPTIVE, PRIOR, STATIC + _MAPPED, ADAPTIVE + _MAPPED):
            raise ValueError(f"coder {number} is newer than this version")
        if not (0 < groups <= _MOST_GROUPS and 0 < codebook_size <= LARGEST_CODEBOOK):
            raise ValueError(f"{groups} groups of {codebook_size} codewords")
        rest = data[_FIXED.size :]
        names = _inflate(rest[:of_names]).decode("utf-8", "surrogateescape").split("\0") if images else []
        index = np.frombuffer(_inflate(rest[of_names : of_names + of_index]), "<u4").reshape(5, images).astype(np.int64)
        if len(names) != images or len(set(names)) != images:
            raise ValueError(f"{len(set(names))} names for {images} images")
        header = cls(tokenizer.hex(), prior.hex() if any(prior) else "", coder, groups, codebook_size, names)
        header.sizes, header.grids, header.lengths, header.mapped = index[:2].T, index[2:4].T, index[4], mapped
        if images and (index[:4].min() < 1 or int(header.grids.prod(1).max()) > _MOST_POSITIONS):
            raise ValueError(f"an image of no pixels, or of more than {_MOST_POSITIONS:,} positions")
        if coder == STATIC:
            table = np.frombuffer(
                _inflate(rest[of_names + of_index :], min(_LARGEST_HEADER, groups * codebook_size)), np.uint8
            )
            header.levels = table.reshape(groups, codebook_size)
        return header

    def row(self, name: str) -> int:
        """The number of the image of this name; raises ValueError."""
        try:
            return self.names.index(name)
        except ValueError:
            raise ValueError(f"there is no image '{name}' among {len(self.names)}") from None


def digest(name: str, size: Sequence[int], tokens: Grid) -> bytes:
    """8 bytes that tell whether an image was decoded as it was encoded."""
    state = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8)
    state.update(np.array([*size, *tokens.shape], "<u4").tobytes())
    state.update(tokens.astype("<u4").tobytes())
    return state.digest()


def record(data: bytes, own: bytes) -> bytes:
    """A record: the coder's bytes, the `digest`, and a CRC over both."""
    return data + own + struct.pack("<I", zlib.crc32(data + own))


def pack(header: Header, records: Sequence[bytes]) -> bytes:
    """The bytes of a file; ``header`` gets the lengths of the records."""
    header.lengths = np.array([len(part) for part in records], np.int64)
    own = header.to_bytes()
    crc, length = struct.pack("<I", zlib.crc32(own)), struct.pack("<I", len(own))
    return b"".join([MAGIC, length, own, crc, *records, own, crc, length, MAGIC])


class CompressedFile:
    """Reads a file of compressed tokens, image by image in any order.

    Attributes:
        header: the `Header`.
        damaged_header: which of the two copies of the header is damaged, in words; None: neither.

    Raises:
        FileNotFoundError: no such file.
        CompressedFileError: not a file of compressed tokens, or one whose header is damaged in both places.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no such file: {self.path}")
        with self.path.open("rb") as file:
            self._bytes = os.fstat(file.fileno()).st_size
            copies = [self._front(file), self._back(file)]
        found = [copy for copy in copies if isinstance(copy, tuple)]
        if not found:
            raise CompressedFileError(
                f"{self.path} is not a file written by gsqtok compress, or is damaged: {copies[0]}"
            )
        self.header, length = found[0]
        damaged = [f"the {place}: {copy}" for place, copy in zip(("first", "second"), copies, strict=True)]
        self.damaged_header = next((d for d, c in zip(damaged, copies, strict=True) if isinstance(c, str)), None)
        start = len(MAGIC) + 8 + length
        self._starts = start + np.concatenate([[0], np.cumsum(self.header.lengths)])

    def __len__(self) -> int:
        return len(self.header.names)

    def read(self, row: int) -> tuple[bytes, bytes]:
        """The coder's bytes of an image, and its `digest`.

        Raises:
            DamagedError: the record is not as it was written.
        """
        start, end = int(self._starts[row]), int(self._starts[row + 1])
        if end > self._bytes:
            raise DamagedError("the file ends before it")
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
        if len(data) < _TAIL or struct.unpack("<I", data[-4:])[0] != zlib.crc32(data[:-4]):
            raise DamagedError("its bytes are not as they were written")
        return data[:-_TAIL], data[-_TAIL:-4]

    def _front(self, file: BinaryIO) -> tuple[Header, int] | str:
        magic, length = file.read(len(MAGIC)), file.read(4)
        if magic != MAGIC or len(length) < 4:
            return "it begins with other bytes"
        return self._header(file, 8, struct.unpack("<I", length)[0])

    def _back(self, file: BinaryIO) -> tuple[Header, int] | str:
        if self._bytes < 8:
            return "it is too short"
        file.seek(self._bytes - 8)
        length, magic = file.read(4), file.read(len(MAGIC))
        length = struct.unpack("<I", length)[0]
        if magic != MAGIC or length + 12 > self._bytes:
            return "it ends with other bytes"
        return self._header(file, self._bytes - 12 - length, length)

    def _header(self, file: BinaryIO, start: int, length: int) -> tuple[Header, int] | str:
        if length > min(_LARGEST_HEADER, self._bytes):
            return f"a header of {length:,} bytes"
        file.seek(start)
        own, crc = file.read(length), file.read(4)
        if crc != struct.pack("<I", zlib.crc32(own)):
            return "the header is not as it was written"
        try:
            return Header.from_bytes(own), length
        except (ValueError, struct.error, zlib.error) as error:
            return f"the header cannot be read ({error})"


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=-15)  # raw: the CRC is over the whole header
    return packer.compress(data) + packer.flush()


def _inflate(data: bytes, limit: int = _LARGEST_HEADER) -> bytes:
    unpacker = zlib.decompressobj(wbits=-15)
    out = unpacker.decompress(data, limit)
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ValueError("a part of it is too large or cut off")
    return out
