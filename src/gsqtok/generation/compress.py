"""Images' tokens to a compressed file and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gsqtok.generation import container
from gsqtok.generation.coder import LARGEST_CODEBOOK, AdaptiveFrequencies, Coder, DamagedError, Grid, StaticFrequencies
from gsqtok.generation.container import CompressedFile, Header
from gsqtok.generation.prior import Prior
from gsqtok.generation.probabilities import PriorCoder
from gsqtok.tokenizer import ImageTokenizer

Frequencies = Literal["static", "adaptive"]
_TOGETHER = 16  # images that are decoded in one call of a coder


@dataclass
class Compressor:
    """Packs the tokens of one tokenizer.

    Args:
        tokenizer: that makes them.
        prior: whose probabilities are used; None: frequencies.
        frequencies: without a prior: static (a table in the file), adaptive (no table), or None for what is smaller.
        device: where the prior computes.

    Raises:
        ValueError: a prior for other tokens, or a masked one; frequencies beside a prior; too large a codebook.
    """

    tokenizer: ImageTokenizer
    prior: Prior | None = None
    frequencies: Frequencies | None = None
    device: torch.device | str = "cpu"
    _coder: PriorCoder | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        quantizer = self.tokenizer.quantizer
        self.groups, self.codebook_size = quantizer.tokens_per_position, quantizer.codebook_size
        if self.codebook_size > LARGEST_CODEBOOK:
            raise ValueError(
                f"tokens of {self.codebook_size:,} codewords cannot be compressed: {LARGEST_CODEBOOK:,} are the most"
            )
        self._tokenizer = self.tokenizer.tokens_fingerprint()[:16]
        self._prior = ""
        if self.prior is not None:
            if self.frequencies is not None:
                raise ValueError("a prior takes the place of frequencies: name one of them")
            self.prior.vocabulary.require(self.tokenizer)
            self._coder, self._prior = PriorCoder(self.prior, self.device), self.prior.fingerprint()[:16]

    def pack(self, names: Sequence[str], sizes: Sequence[tuple[int, int]], grids: Sequence[Grid]) -> bytes:
        """The bytes of a file.

        Args:
            names: of the images, each once and without a zero character.
            sizes: heights and widths in pixels.
            grids: tokens (h, w, G) of each; -1 for nested groups that are left out, which cost nothing but a map.

        Raises:
            ValueError: no image, a name that is there twice, or one that no file can have; groups that are left out,
                with a prior.
        """
        if not grids:
            raise ValueError("there is no image to compress")
        if len(set(names)) < len(names) or any("\0" in name for name in names):
            raise ValueError("the images' names must differ, and be names of files")
        mapped = any(bool((grid < 0).any()) for grid in grids)
        if mapped and self.prior is not None:
            raise ValueError("a prior codes all groups of a position: leave the prior out, or keep all groups")
        return min((self._packed(coder, names, sizes, grids, mapped) for coder in self._coders(grids, mapped)), key=len)

    def bits(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Bits of a file with one image alone, for each of (B, h, w, G) tokens of images of this size: (B,) float64."""
        grids = tokens.cpu().numpy()
        return torch.tensor([8.0 * len(self.pack(["0"], [size], [grid])) for grid in grids], dtype=torch.float64)

    def _coders(self, grids: Sequence[Grid], mapped: bool) -> Iterator[tuple[int, Coder]]:
        if self._coder is not None:
            yield container.PRIOR, self._coder
            return
        if self.frequencies != "adaptive":
            yield container.STATIC, StaticFrequencies.of(grids, self.codebook_size, mapped)
        if self.frequencies != "static":
            yield container.ADAPTIVE, AdaptiveFrequencies(self.groups, self.codebook_size, mapped)

    def _packed(
        self,
        coder: tuple[int, Coder],
        names: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        grids: Sequence[Grid],
        mapped: bool,
    ) -> bytes:
        kind, own = coder
        header = Header(self._tokenizer, self._prior, kind, self.groups, self.codebook_size, list(names), mapped=mapped)
        header.sizes = np.array(sizes, np.int64)
        header.grids = np.array([grid.shape[:2] for grid in grids], np.int64)
        header.levels = own.levels if isinstance(own, StaticFrequencies) else None
        digests = (container.digest(name, size, grid) for name, size, grid in zip(names, sizes, grids, strict=True))
        records = [container.record(data, tail) for data, tail in zip(own.encode(grids), digests, strict=True)]
        return container.pack(header, records)


def decompress(
    path: str | Path | CompressedFile,
    tokenizer: ImageTokenizer,
    prior: Prior | None = None,
    *,
    names: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, tuple[int, int], Grid | DamagedError]]:
    """Name, (height, width) and tokens (h, w, G) of each image of a file, or what is wrong with the image.

    Nothing is ever decoded wrongly without a word: every image has a checksum of its tokens.

    Args:
        path: of a file that gsqtok compress wrote.
        tokenizer: that made the tokens.
        prior: that compressed them, if one did.
        names: only these images; the others are not read.
        device: where the prior computes.

    Raises:
        CompressedFileError, FileNotFoundError: see `CompressedFile`.
        ValueError: another tokenizer or prior than the file's, or no image of a name.
    """
    file = path if isinstance(path, CompressedFile) else CompressedFile(path)
    coder = _coder_of(file, tokenizer, prior, device)
    rows = list(range(len(file))) if names is None else [file.header.row(name) for name in names]
    return _decompressed(file, coder, rows, tokenizer)


def _decompressed(
    file: CompressedFile, coder: Coder, rows: list[int], tokenizer: ImageTokenizer
) -> Iterator[tuple[str, tuple[int, int], Grid | DamagedError]]:
    header = file.header
    for first in range(0, len(rows), _TOGETHER):
        found: dict[int, tuple[bytes, bytes]] = {}
        errors: dict[int, DamagedError] = {}
        batch = rows[first : first + _TOGETHER]
        for row in batch:
            try:
                found[row] = _read(file, row, tokenizer)
            except DamagedError as error:
                errors[row] = error
        shapes = {row: (int(header.grids[row, 0]), int(header.grids[row, 1])) for row in found}
        decoded = dict(zip(found, coder.decode([(found[row][0], shapes[row]) for row in found]), strict=True))
        for row in batch:
            name, size = header.names[row], (int(header.sizes[row, 0]), int(header.sizes[row, 1]))
            tokens = errors[row] if row in errors else decoded[row]
            if not isinstance(tokens, DamagedError) and container.digest(name, size, tokens) != found[row][1]:
                tokens = DamagedError(
                    "it was decoded to other tokens than were encoded: the probabilities differ on this machine"
                )
            yield name, size, tokens


def _read(file: CompressedFile, row: int, tokenizer: ImageTokenizer) -> tuple[bytes, bytes]:
    """As ``CompressedFile.read``, once the image's size and its grid are known to belong together."""
    size, grid = file.header.sizes[row].tolist(), file.header.grids[row].tolist()
    if tokenizer.grid(*size) != tuple(grid):
        raise DamagedError(f"{size[0]} x {size[1]} pixels are no grid of {grid[0]} x {grid[1]} tokens")
    return file.read(row)


def _coder_of(
    file: CompressedFile, tokenizer: ImageTokenizer, prior: Prior | None, device: torch.device | str
) -> Coder:
    """What decodes a file, after all fingerprints have been compared."""
    header, quantizer = file.header, tokenizer.quantizer
    if (theirs := tokenizer.tokens_fingerprint()[:16]) != header.tokenizer:
        raise ValueError(
            f"{file.path} was made by the tokenizer {header.tokenizer[:12]}, this one is {theirs[:12]}: name the same "
            "model that compressed it"
        )
    if (header.groups, header.codebook_size) != (quantizer.tokens_per_position, quantizer.codebook_size):
        raise container.CompressedFileError(f"{file.path} is damaged: its tokens are not of its tokenizer")
    if header.mapped and quantizer.nested is None:
        raise container.CompressedFileError(f"{file.path} is damaged: the groups of its tokenizer are not nested")
    if header.coder != container.PRIOR:
        if header.levels is not None:
            return StaticFrequencies(header.levels, header.mapped)
        return AdaptiveFrequencies(header.groups, header.codebook_size, header.mapped)
    if prior is None:
        raise ValueError(f"{file.path} was compressed with the prior {header.prior[:12]}: name it with --prior")
    if (theirs := prior.fingerprint()[:16]) != header.prior:
        raise ValueError(
            f"{file.path} was compressed with the prior {header.prior[:12]}, this one is {theirs[:12]}: name the same"
        )
    prior.vocabulary.require(tokenizer)
    return PriorCoder(prior, device)


def fixed_bits(tokenizer: ImageTokenizer, grids: Sequence[Grid]) -> float:
    """Bits of tokens of which each takes log2(V); none of those that are left out."""
    return sum(int((grid >= 0).sum()) for grid in grids) * math.log2(tokenizer.quantizer.codebook_size)
