"""Tokens of a handful of images in one .npz file, readable with numpy alone.

``numpy.load("tokens.npz")["cat.png"]`` is that image's grid (h, w, G). The entry ``__gsqtok__`` holds, as JSON, which
tokenizer made the tokens and the images' sizes in pixels.
"""

from __future__ import annotations

import json
import math
import reprlib
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from gsqtok.io import atomic_write, one_line
from gsqtok.tokenizer import ImageTokenizer

META = "__gsqtok__"
FORMAT = 1


class TokenArchiveError(ValueError):
    """A file that is not a readable token archive, or not one of this tokenizer."""


class TokenArchiveWriter:
    """Writes an archive image by image; the file appears when the block ends without an error."""

    def __init__(self, path: str | Path, tokenizer: ImageTokenizer) -> None:
        self.path = Path(path)
        self.codebook_size = tokenizer.quantizer.codebook_size
        made_by = {"tokenizer": tokenizer.tokens_fingerprint(), "codebook_size": self.codebook_size}
        self.meta = {"format": FORMAT, **made_by}
        self.sizes: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> TokenArchiveWriter:
        with ExitStack() as opened:
            temporary = opened.enter_context(atomic_write(self.path))
            self.zip = opened.enter_context(zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED))
            self._opened = opened.pop_all()
        return self

    def add(self, name: str, tokens: Tensor, size: tuple[int, int]) -> None:
        """Add an image: its name, tokens (h, w, G), height and width in pixels."""
        if name in self.sizes or name == META:
            raise ValueError(f"two images are called '{name}'")
        self._write(name, tokens.cpu().numpy().astype(np.min_scalar_type(self.codebook_size - 1)))
        self.sizes[name] = (int(size[0]), int(size[1]))

    def _write(self, name: str, array: np.ndarray) -> None:
        with self.zip.open(f"{name}.npy", "w", force_zip64=True) as file:
            npy.write_array(file, array, allow_pickle=False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        with self._opened:
            if error is not None:
                raise error
            self._write(META, np.array(json.dumps(self.meta | {"sizes": self.sizes})))


class TokenArchive:
    """Reads an archive: iterate for (name, tokens (h, w, G) int64, (height, width)).

    Raises:
        FileNotFoundError: no such file.
        TokenArchiveError: not a token archive.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no such file: {self.path}")
        try:
            self._zip = zipfile.ZipFile(self.path)
            meta = json.loads(str(self._array(META)))
            if meta["format"] != FORMAT:
                raise ValueError(f"format {meta['format']}, this version reads {FORMAT}")
            self.sizes = {name: (_count(h), _count(w)) for name, (h, w) in meta["sizes"].items()}
            self.fingerprint, self.codebook_size = str(meta["tokenizer"]), _count(meta["codebook_size"])
        except Exception as error:  # of a damaged file, or one of another kind, numpy and zipfile raise nearly anything
            raise TokenArchiveError(
                f"{self.path} is not an archive written by gsqtok encode ({one_line(error)[:200]})"
            ) from error

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[str, Tensor, tuple[int, int]]]:
        for name, size in self.sizes.items():
            try:
                array = self._array(name)
            except Exception as error:
                said = one_line(error)[:200]
                raise TokenArchiveError(f"{self.path}: the tokens of '{name}' cannot be read ({said})") from error
            if array.ndim != 3 or array.dtype.kind != "u":
                shape = f"{array.dtype} {array.shape}"
                raise TokenArchiveError(f"{self.path}: '{name}' is {shape}, not a grid (h, w, G) of unsigned integers")
            if not array.size or int(array.max()) >= self.codebook_size:
                wrong = f"a token of '{name}' is not below {self.codebook_size}" if array.size else f"'{name}' is empty"
                raise TokenArchiveError(f"{self.path}: {wrong}")
            yield name, torch.from_numpy(array.astype(np.int64)), size

    def _array(self, name: str) -> np.ndarray:
        """An entry, if it has as many bytes as its header says; a header alone takes no memory."""
        with self._zip.open(f"{name}.npy") as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file)
            size = self._zip.getinfo(f"{name}.npy").file_size
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != size - file.tell():
                raise ValueError(f"its header says {dtype} {shape}, which it does not hold")
            file.seek(0)
            return npy.read_array(file, allow_pickle=False)

    def require(self, tokenizer: ImageTokenizer) -> None:
        """Refuse a tokenizer other than the one that made the tokens."""
        if (theirs := tokenizer.tokens_fingerprint()) != self.fingerprint:
            raise TokenArchiveError(
                f"{self.path} was made by the tokenizer {self.fingerprint[:12]}, this one is {theirs[:12]}: "
                "name the same model that encoded it"
            )


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**63:
        raise ValueError(f"{reprlib.repr(value)} is no positive whole number")
    return value
