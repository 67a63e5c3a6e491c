"""Tokens of a handful of images in one .npz file, readable with numpy alone.

``numpy.load("tokens.npz")["cat.png"]`` is that image's grid (h, w, G). The entry ``__gsqtok__`` holds, as JSON, which
tokenizer made the tokens and the images' sizes in pixels.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from gsqtok.io import atomic_write
from gsqtok.tokenizer import ImageTokenizer

META = "__gsqtok__"
# What numpy and zipfile raise for files that are damaged or of another kind.
UNREADABLE = (
    *(ValueError, LookupError, TypeError, AttributeError, OSError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


class TokenArchiveError(ValueError):
    """A file that is not a readable token archive, or not one of this tokenizer."""


class TokenArchiveWriter:
    """Writes an archive image by image; the file appears when the block ends without an error."""

    def __init__(self, path: str | Path, tokenizer: ImageTokenizer) -> None:
        self.path = Path(path)
        self.codebook_size = tokenizer.quantizer.codebook_size
        self.meta = {"format": 1, "tokenizer": tokenizer.tokens_fingerprint(), "codebook_size": self.codebook_size}
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
            self._arrays = np.load(self.path, allow_pickle=False)
            self.meta = json.loads(str(self._arrays[META]))
            self.sizes = {name: (int(h), int(w)) for name, (h, w) in self.meta["sizes"].items()}
            self.fingerprint, self.codebook_size = str(self.meta["tokenizer"]), int(self.meta["codebook_size"])
        except UNREADABLE as error:
            raise TokenArchiveError(f"{self.path} is not an archive written by gsqtok encode ({error})") from error

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[str, Tensor, tuple[int, int]]]:
        for name, size in self.sizes.items():
            try:
                array = self._arrays[f"{name}.npy"]  # the whole name: numpy takes "a.npy" alone for the entry "a"
            except UNREADABLE as error:
                raise TokenArchiveError(f"{self.path}: the tokens of '{name}' cannot be read ({error})") from error
            if array.ndim != 3 or array.dtype.kind != "u":
                shape = f"{array.dtype} {array.shape}"
                raise TokenArchiveError(f"{self.path}: '{name}' is {shape}, not a grid (h, w, G) of unsigned integers")
            yield name, torch.from_numpy(array.astype(np.int64)), size

    def require(self, tokenizer: ImageTokenizer) -> None:
        """Refuse a tokenizer other than the one that made the tokens."""
        if (theirs := tokenizer.tokens_fingerprint()) != self.fingerprint:
            raise TokenArchiveError(
                f"{self.path} was made by the tokenizer {self.fingerprint[:12]}, this one is {theirs[:12]}: "
                "name the same model that encoded it"
            )
