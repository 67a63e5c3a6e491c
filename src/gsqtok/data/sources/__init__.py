"""One way to read images, wherever they are: a folder, parquet files, tar shards, a data set of the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gsqtok.data.sources.base import UNKNOWN, ImageSource, Part, Reader, Row, Span
from gsqtok.data.sources.by_number import ByNumber
from gsqtok.data.sources.listing import (
    Kind,
    SourceFile,
    SplitError,
    check_outside,
    distinct_names,
    find_files,
    may_be_on_hub,
)

__all__ = ["UNKNOWN", "ByNumber", "ImageSource", "Reader", "Row", "Span", "SplitError", "check_outside", "open_source"]


def open_source(
    source: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    columns: Sequence[str] = (),
    streaming: bool = False,
) -> ImageSource:
    """Open one or several sources of images.

    A source is a folder of images (recursive), an image file, parquet files with an image column, tar shards in the
    WebDataset layout, each of them as a folder, a file, a glob or a brace pattern, or else a data set of the hub,
    ``owner/name``. Several sources follow one another.

    Keys are unique and stable: the relative path of an image file, ``<file>-<row>`` for parquet files,
    ``<shard.tar>/<member>`` for tar shards and ``<split>-<row>`` for the hub (``<split>-<shard>-<row>`` with
    ``streaming``). What occurs twice gets ``#2``. The keys of several sources begin with the source's name.

    Args:
        source: the source or sources.
        split: the split to take: of a hub data set, or by the names of files and folders (see ``find_files``); "all"
            takes every file. Needed only where there are several.
        columns: extra columns to read along, where all sources have them, such as ("label", "caption").
        streaming: read a data set of the hub over the network instead of downloading it first.

    Raises:
        FileNotFoundError: no such path, and no such hub data set within reach.
        ValueError: an empty folder, no image among the files, no image column, an unreadable parquet file, or an
            ambiguous choice of split.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    if not sources:
        raise ValueError("no source of images given")
    prefixes = [f"{name}/" for name in distinct_names(sources)] if len(sources) > 1 else [""]
    parts: list[Part] = []
    images: list[SourceFile] = []
    for one, prefix in zip(sources, prefixes, strict=True):
        if may_be_on_hub(one):
            from gsqtok.data.sources.hub import open_hub

            parts += _files("image", images) + open_hub(str(one), split, prefix, streaming)
            images = []
            continue
        kind, files = find_files(one, split)
        alone = os.path.basename(prefix[:-1])  # a single file's prefix is its name already
        files = [file._replace(name=prefix[:-1] if file.name == alone else prefix + file.name) for file in files]
        if kind == "image":
            images += files  # one part, also if 10,000 files were named
        else:
            parts += _files("image", images) + _files(kind, files, columns)
            images = []
    return ImageSource(parts + _files("image", images), columns)


def _files(kind: Kind, files: list[SourceFile], columns: Sequence[str] = ()) -> list[Part]:
    """Open files of a kind; formats are imported when they are needed."""
    if not files:
        return []
    if kind == "image":
        from gsqtok.data.sources.folder import ImageFiles

        return [ImageFiles(files)]
    if kind == "parquet":
        from gsqtok.data.sources.parquet import ParquetFile

        opened: list[Part] = [ParquetFile(file) for file in files]
        if full := [part for part in opened if len(part)]:
            return full
        raise ValueError(f"the parquet files hold no rows: {', '.join(file.path for file in files[:3])}")
    from gsqtok.data.sources.tar import TarShard

    return [TarShard(file, bool({"label", "caption"} & set(columns))) for file in files]
