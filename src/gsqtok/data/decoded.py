"""Images decoded once, at several scales, in files that every process of a machine maps into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from gsqtok.data.decode import BrokenImageError, decode_row
from gsqtok.data.sources import ImageSource, Reader
from gsqtok.data.transforms import resize, size_at
from gsqtok.io import atomic_write

_CHUNK = 64  # images a file
_INDEX = "index.npz"  # written last: where it is, the files are whole


class DecodedRow(NamedTuple):
    """One image, decoded and resized.

    Attributes:
        key: unique within the source.
        images: gives the image, uint8 (H, W, 3), and its smaller copies; raises BrokenImageError where there is none.
    """

    key: str
    images: Callable[[], list[np.ndarray]]


class DecodedImages:
    """The images of a source by number, each decoded once; what decodes them anew for each crop gives the same pixels.

    A folder below ``folder`` holds them, about 3 bytes a pixel for each scale; later runs find it by the source's
    digest. The system keeps in memory what is used, once for all processes, and lets it go when memory is short.
    Crops of images that are resized to other lengths than those of ``scales`` are resized each time.

    Args:
        source: see ``open_source``.
        folder: of all such files.
        scales: by which the images' short sides are divided, for copies that ``ImageTransform.scales`` asks for.
        workers: processes that decode; 0: this one.

    Raises:
        ValueError: there are no images.
        OSError: the files cannot be written.
    """

    def __init__(
        self, source: ImageSource, folder: str | Path, *, scales: Sequence[float] = (), workers: int = 0
    ) -> None:
        scales = tuple(sorted({float(scale) for scale in scales} - {1.0}))
        name = hashlib.sha256(repr((source.digest, scales)).encode()).hexdigest()[:16]
        self.folder = Path(folder) / name
        if not (self.folder / _INDEX).exists():
            _decode_all(source, self.folder, scales, workers)
        with np.load(self.folder / _INDEX) as index:
            self._keys, self._reasons, self._places = index["keys"], index["reasons"], index["places"]
        self._maps: dict[int, np.ndarray] = {}
        if not len(self._keys):
            raise ValueError("the source holds no image")

    def __len__(self) -> int:
        return len(self._keys)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # another process maps the files itself

    def take(self, numbers: Sequence[int]) -> list[DecodedRow]:
        """Read the rows with these numbers."""
        return [DecodedRow(str(self._keys[number]), partial(self._images, number)) for number in numbers]

    def _images(self, number: int) -> list[np.ndarray]:
        if reason := str(self._reasons[number]):
            raise BrokenImageError(reason)
        chunk, *places = self._places[number].tolist()
        if chunk not in self._maps:
            file = self.folder / _name(chunk)
            # unlike numpy's, torch's map keeps no file open, of which a process may have a thousand
            mapped = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
            self._maps[chunk] = mapped.numpy()
        pixels = self._maps[chunk]
        return [
            pixels[start : start + height * width * 3].reshape(height, width, 3)
            for start, height, width in np.reshape(places, (-1, 3)).tolist()
        ]


def _name(chunk: int) -> str:
    return f"{chunk:06d}.pixels"


def _decode_all(source: ImageSource, folder: Path, scales: tuple[float, ...], workers: int) -> None:
    """Write the files of pixels, then the index."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [(number, source.reader(span)) for number, span in enumerate(source.spans(_CHUNK))]
    loader = DataLoader(_Decoding(folder, scales), sampler=chunks, batch_size=None, num_workers=workers,
                        collate_fn=list, generator=torch.Generator())  # fmt: skip
    rows = [row for chunk in loader for row in chunk]
    keys, reasons, places = zip(*rows, strict=True) if rows else ((), (), ())
    table = np.array(places, np.int64).reshape(len(rows), 1 + 3 * (1 + len(scales)))
    with atomic_write(folder / _INDEX) as temporary, temporary.open("wb") as file:
        np.savez(file, keys=np.array(keys, str), reasons=np.array(reasons, str), places=table)


@dataclass
class _Decoding(Dataset[list[tuple[str, str, list[int]]]]):
    """Writes a chunk's pixels; gives key, reason, and [chunk, start, height, width, start, ...] of each of its rows."""

    folder: Path
    scales: tuple[float, ...]

    def __getitem__(self, chunk: tuple[int, Reader]) -> list[tuple[str, str, list[int]]]:
        number, reader = chunk
        rows, start = [], 0
        with atomic_write(self.folder / _name(number)) as temporary, temporary.open("wb") as file:
            for row in reader():
                place, reason = [number], ""
                try:
                    images = _copies(decode_row(row), self.scales)
                except BrokenImageError as error:
                    images, reason = [np.empty((0, 0, 3), np.uint8)] * (1 + len(self.scales)), str(error)
                for image in images:
                    file.write(np.ascontiguousarray(image).data)
                    place += [start, *image.shape[:2]]
                    start += image.size
                rows.append((row.key, reason, place))
        return rows


def _copies(image: np.ndarray, scales: Sequence[float]) -> list[np.ndarray]:
    """The image, and itself at each scale."""
    height, width = image.shape[:2]
    shorts = [max(1, int(min(width, height) / scale)) for scale in scales]
    return [image, *(resize(image, size_at(short, width, height)) for short in shorts)]
