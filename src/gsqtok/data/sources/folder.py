"""Image files: those of a folder or a glob, or named one by one."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence

import pyarrow as pa

from gsqtok.data.sources.base import Part, Reader, Row, cut
from gsqtok.data.sources.listing import SourceFile, stamp
from gsqtok.io import read_bytes

_PIECES = 64  # of a listing, for streaming
# Errors of one file; any other, such as a server that is gone, must not skip a whole data set.
_OF_ONE_FILE = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR),
    *(errno.EINVAL, errno.EFBIG),
)


class ImageFiles(Part):
    """A row for every file; its key is its name in the listing."""

    by_number = True

    def __init__(self, files: Sequence[SourceFile]) -> None:
        # Arrow: forked processes share it, while they would copy the pages of Python's texts when they look at them
        self._paths = pa.array([os.fsencode(file.path) for file in files], pa.large_binary())
        self._keys = pa.array([file.name for file in files], pa.large_string())

    def stamp(self) -> str:
        digest = hashlib.sha256()
        for key, path in zip(self._keys, self._paths, strict=True):
            digest.update(f"{key}\0{stamp(path.as_py())}\0".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._keys)

    def spans(self, size: int | None) -> Iterator[tuple[int, int]]:
        return cut(len(self), size or -(-len(self) // _PIECES))

    def keys(self, first: int, length: int) -> list[str]:
        return list(self._keys.slice(first, length).to_pylist())

    def reader(self, first: int, length: int, columns: tuple[str, ...]) -> Reader:
        paths = self._paths.slice(first, length).to_pylist()
        return functools.partial(read_files, paths, self.keys(first, length))


def read_files(paths: Sequence[bytes], keys: Sequence[str]) -> Iterator[Row]:
    """Read files whole.

    Raises:
        OSError: not one file but its folder is out of reach.
    """
    for path, key in zip(paths, keys, strict=True):
        try:
            yield Row(key, read_bytes(path), {})
        except ValueError as error:  # a null character in the path
            yield Row(key, None, {}, f"cannot be read: {error}")
        except OSError as error:
            os.stat(os.path.dirname(path) or b".")
            if error.errno not in _OF_ONE_FILE:
                raise
            yield Row(key, None, {}, f"cannot be read: {error.strerror}")
