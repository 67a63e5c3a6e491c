"""Opening images wherever they are, as a Hugging Face data set of ``image`` (undecoded) and ``key``."""

from __future__ import annotations

import logging
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsqtok.data.files import IMAGE_SUFFIXES, Kind, SourceFile, as_text, distinct_names, find_files, may_be_on_hub

if TYPE_CHECKING:
    import datasets

    AnyDataset = datasets.Dataset | datasets.IterableDataset

_logger = logging.getLogger("gsqtok.data")
_READ_ROWS = 64  # rows of a parquet file or a hub data set read at once when streaming
_CONVERT_ROWS = 1000  # rows of a parquet file held in memory while it is converted
_STREAM_SHARDS = 64  # pieces that a streamed listing of image files is cut into


def open_source(
    source: str | Path | Sequence[str | Path], *, split: str | None = None, streaming: bool = False
) -> AnyDataset:
    """Open one or several sources of images.

    A source is a folder of images (recursive), an image file, parquet files with an image column, tar shards in the
    WebDataset layout, each of them as a folder, a file, a glob or a brace pattern, or else a data set of the hub,
    ``owner/name``. Several sources follow one another.

    The rows hold ``image``, undecoded (``{"bytes": ..., "path": ...}``, for ``decode_image``), ``key``, a unique and
    stable name, and the other columns that all files share (label, caption, ...). Keys are the relative path for
    images, ``<file>-<row>`` for parquet files, ``<shard.tar>/<member>`` for tar shards and ``<split>-<row>`` for hub
    data sets (streaming: ``<split>-<shard>-<row>``); of several sources, each starts its keys with its own name.

    Without streaming the rows can be addressed by number. Image files are read where they are; parquet files and tar
    shards are converted once to memory-mapped Arrow in the cache of ``datasets`` (HF_HOME), which takes about their
    size on disk. Streaming reads everything in place, in order.

    Args:
        source: the source or sources.
        split: the split to take: of a hub data set, or by the names of files and folders (see ``find_files``); "all"
            takes every file. Needed only where there are several.
        streaming: return an ``IterableDataset``.

    Raises:
        FileNotFoundError: no such path, and no such hub data set within reach.
        ValueError: an empty folder, no image among the files, no image column, an unreadable parquet file, or an
            ambiguous choice of split.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    if not sources:
        raise ValueError("no source of images given")
    prefixes = [f"{name}/" for name in distinct_names(sources)] if len(sources) > 1 else [""]

    parts: list[AnyDataset] = []
    pending: list[SourceFile] = []  # files of one kind that follow each other: one part, also if 10,000 were named
    pending_kind: Kind | None = None
    for one, prefix in zip(sources, prefixes, strict=True):
        if may_be_on_hub(one):
            kind, files = None, []
        else:
            kind, files = find_files(one, split)
            files = [file._replace(name=_join(prefix, file.name)) for file in files]
        if pending and kind != pending_kind:
            parts.append(_open_files(pending_kind, pending, streaming))
            pending = []
        pending_kind = kind
        pending += files
        if kind is None:
            parts.append(_open_hub(str(one), split, streaming, prefix))
    if pending:
        parts.append(_open_files(pending_kind, pending, streaming))
    return _concatenate(parts)


def rows(dataset: AnyDataset) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of a data set, all of them also inside a DataLoader worker.

    There, ``iter(IterableDataset)`` would take only the worker's shards, and give nothing to workers beyond the
    number of shards; ``IterableDataset.iter`` leaves the division to the caller.
    """
    for batch in dataset.iter(_READ_ROWS):
        columns = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def _join(prefix: str, name: str) -> str:
    """Prefix a name; a single file's prefix already ends in its name."""
    return prefix.rstrip("/") if os.path.basename(prefix.rstrip("/")) == name else prefix + name


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _open_files(kind: Kind | None, files: list[SourceFile], streaming: bool) -> AnyDataset:
    if kind == "image":
        return _open_images(files, streaming)
    if kind == "parquet":
        return _open_parquet(files, streaming)
    return _open_tars(files, streaming)


# Image files


def _open_images(files: list[SourceFile], streaming: bool) -> AnyDataset:
    import datasets

    features = _features()
    others = {file.path for file in files if file.path != as_text(file.path)}  # Arrow strings hold nothing but UTF-8
    if others:
        named = ", ".join(as_text(file.path) for file in files if file.path in others)
        files = [file for file in files if file.path not in others]
        if not files:
            raise ValueError(f"paths that are not UTF-8: rename {named}")
        _logger.warning("left out files whose paths are not UTF-8: rename %s", named)
    columns = {"image": [{"bytes": None, "path": file.path} for file in files], "key": [file.name for file in files]}
    dataset = datasets.Dataset.from_dict(columns, features=features)
    return dataset.to_iterable_dataset(num_shards=min(_STREAM_SHARDS, len(files))) if streaming else dataset


# Parquet files


def _open_parquet(files: list[SourceFile], streaming: bool) -> AnyDataset:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    layouts: dict[str, list[tuple[SourceFile, datasets.Features, int]]] = {}  # by the name of the image column
    for file in files:
        try:
            metadata = pq.read_metadata(file.path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file.path!r} is not a readable parquet file: {_one_line(error)}") from None
        schema = metadata.schema.to_arrow_schema()
        try:
            features = datasets.Features.from_arrow_schema(schema)
        except ValueError as error:  # such as ImageNet's class names, of which two are "crane"
            _logger.info("%s: left out what the file says of its columns (%s)", file.path, error)
            features = datasets.Features.from_arrow_schema(schema.remove_metadata())
        image = image_column(features, file.path)
        if metadata.num_rows:
            layouts.setdefault(image, []).append((file, features, metadata.num_rows))
    if not layouts:
        raise ValueError(f"the parquet files hold no rows: {', '.join(file.path for file in files[:3])}")
    parts = []
    for image, members in layouts.items():
        extras = _common([extra_columns(features, image) for _, features, _ in members])
        part_files = [file for file, _, _ in members]
        if streaming:
            arguments = {"files": part_files, "image": image, "extras": tuple(extras)}
            part = datasets.IterableDataset.from_generator(
                _parquet_rows, features=_features(extras), gen_kwargs=arguments
            )
        else:
            wanted = datasets.Features({image: datasets.Image(decode=False), **extras})
            part = datasets.load_dataset(
                "parquet",
                data_files=[_escape(file.path) for file in part_files],
                split="train",
                columns=list(wanted),
                features=wanted,
                batch_size=_CONVERT_ROWS,  # the default is the size of the first row group, and that may be 0
            )
            part = part if image == "image" else part.rename_column(image, "image")
            part = part.add_column("key", [row_key(file, row) for file, _, count in members for row in range(count)])
            part = part.select_columns(list(_features(extras)))
        parts.append(part)
    return _concatenate(parts)


def _parquet_rows(files: list[SourceFile], image: str, extras: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for file in files:
        row = 0
        with pq.ParquetFile(file.path) as parquet:
            for batch in parquet.iter_batches(_READ_ROWS, columns=[image, *extras]):
                for values in batch.to_pylist():
                    value = values.pop(image)
                    if isinstance(value, bytes):
                        value = {"bytes": value, "path": None}
                    yield {"image": value, "key": row_key(file, row), **values}
                    row += 1


def row_key(file: SourceFile, row: int) -> str:
    """The key of a row of a parquet file."""
    return f"{file.name.removesuffix('.parquet')}-{row:06d}"


def _escape(path: str) -> str:
    """``load_dataset`` takes paths as patterns."""
    return re.sub(r"([*?[])", r"[\1]", os.path.abspath(path))


# Tar shards


def _open_tars(files: list[SourceFile], streaming: bool) -> AnyDataset:
    import datasets

    features = _features({"label": datasets.Value("int64"), "caption": datasets.Value("string")})
    arguments = {"files": files}
    if streaming:
        return datasets.IterableDataset.from_generator(_tar_rows, features=features, gen_kwargs=arguments)
    try:
        return datasets.Dataset.from_generator(_tar_rows, features=features, gen_kwargs=arguments)
    except ValueError:  # what datasets says of no rows at all; failures of the generator are DatasetGenerationErrors
        raise ValueError(f"no image in the tar shards {', '.join(file.path for file in files[:3])}") from None


def _tar_rows(files: list[SourceFile]) -> Iterator[dict[str, Any]]:
    """A row for every image of every sample; a sample is a run of members with the same name up to the first dot.

    A shard that cannot be read to its end yields a last row without data that names the place: it is rejected and
    reported like a broken image, each time.
    """
    for file in files:
        last, prefix, sample = "the start", None, {}
        try:
            with tarfile.open(file.path, "r:*") as archive:
                for member in archive:
                    archive.members = []  # or the listing of the whole shard stays in memory
                    folder, name = os.path.split(member.name.removeprefix("./"))
                    stem = name.partition(".")[0]
                    if not member.isfile() or not stem:  # hidden files have no stem
                        continue
                    if (folder, stem) != prefix:
                        yield from _sample_rows(file.name, sample)
                        prefix, sample = (folder, stem), {}
                    sample[f"{folder}/{name}" if folder else name] = archive.extractfile(member).read()
                    last = member.name
                check_end(archive)
            error = None
        except (tarfile.TarError, OSError, EOFError, zlib.error) as failure:
            error = _one_line(failure)
        yield from _sample_rows(file.name, sample)
        if error is not None:
            key = f"{file.name}/(unreadable after {last}: {error})"
            yield {"image": {"bytes": b"", "path": key}, "key": key, "label": None, "caption": None}


def check_end(archive: tarfile.TarFile) -> None:
    """``tarfile`` takes a damaged header for the end of the archive; the true end is a block of zeros, or nothing."""
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError("damaged header")


def _sample_rows(shard: str, sample: dict[str, bytes]) -> Iterator[dict[str, Any]]:
    label = caption = None
    for name, data in sample.items():
        if name.lower().endswith(".cls"):
            text = data.decode(errors="replace").strip()
            label = int(text) if re.fullmatch(r"-?\d{1,18}", text) else None
        elif name.lower().endswith(".txt"):
            caption = data.decode(errors="replace")
    for name, data in sample.items():
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            image = {"bytes": data, "path": name}
            yield {"image": image, "key": f"{shard}/{name}", "label": label, "caption": caption}


# The hub


def _open_hub(name: str, split: str | None, streaming: bool, prefix: str) -> AnyDataset:
    import datasets

    try:
        loaded = datasets.load_dataset(name, split=split, streaming=streaming)
    except ValueError as error:
        raise ValueError(f"hub data set {name!r}: {_one_line(error)}") from error
    except (OSError, datasets.exceptions.DatasetsError) as error:  # no network, no such data set, no permission
        searched = f"no file or folder {name!r} here, and no hub data set {name!r} within reach"
        raise FileNotFoundError(f"{searched}: {_one_line(error)}") from error
    if isinstance(loaded, dict):
        if len(loaded) > 1:
            raise ValueError(f"hub data set {name!r} has the splits {', '.join(loaded)}: name one")
        ((split, loaded),) = loaded.items()
    features = loaded.features
    if features is None:
        raise ValueError(f"hub data set {name!r} does not declare its columns: open it with streaming=False")
    image = image_column(features, name)
    extras = extra_columns(features, image)
    loaded = loaded.select_columns([image, *extras]).cast_column(image, datasets.Image(decode=False))
    loaded = loaded if image == "image" else loaded.rename_column(image, "image")
    if streaming:
        arguments = {"dataset": (loaded,), "shards": list(range(loaded.num_shards)), "prefix": f"{prefix}{split}"}
        return datasets.IterableDataset.from_generator(_hub_rows, features=_features(extras), gen_kwargs=arguments)
    loaded = loaded.add_column("key", [f"{prefix}{split}-{row:06d}" for row in range(len(loaded))])
    return loaded.select_columns(list(_features(extras)))


def _hub_rows(dataset: tuple[datasets.IterableDataset], shards: list[int], prefix: str) -> Iterator[dict[str, Any]]:
    (whole,) = dataset
    for shard in shards:
        for row, values in enumerate(rows(whole.shard(whole.num_shards, shard))):
            yield {**values, "key": f"{prefix}-{shard:05d}-{row:06d}"}


# Columns


def _features(extras: dict[str, Any] | None = None) -> datasets.Features:
    import datasets

    return datasets.Features({"image": datasets.Image(decode=False), "key": datasets.Value("string"), **(extras or {})})


def _is_image(feature: Any) -> bool:
    import pyarrow as pa

    if isinstance(feature, pa.DataType):
        binary = pa.types.is_binary(feature) or pa.types.is_large_binary(feature)
        return binary or (pa.types.is_struct(feature) and feature.get_field_index("bytes") >= 0)
    import datasets

    if isinstance(feature, dict):
        return "bytes" in feature
    binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    return binary or isinstance(feature, datasets.Image)


def image_column(features: Mapping[str, Any], where: str) -> str:
    """The name of the column of encoded images: ``image``, or the only one there is; ValueError otherwise.

    Args:
        features: of ``datasets``, or Arrow's types, for which ``datasets`` need not be imported.
        where: for the message.
    """
    candidates = [name for name, feature in features.items() if _is_image(feature)]
    if "image" in candidates:
        return "image"
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ValueError(f"{where!r} has several image columns, {', '.join(candidates)}: call one of them 'image'")
    raise ValueError(f"{where!r} has no column of encoded images, only {', '.join(features) or 'nothing'}")


def extra_columns(features: Mapping[str, Any], image: str) -> dict[str, Any]:
    """The columns carried along: all but other images and a ``key`` of the file's own."""
    return {
        name: feature
        for name, feature in features.items()
        if name not in (image, "image", "key") and not _is_image(feature)
    }


def _common(layouts: list[dict[str, Any]]) -> dict[str, Any]:
    common = {
        name: feature for name, feature in layouts[0].items() if all(other.get(name) == feature for other in layouts)
    }
    dropped = sorted({name for layout in layouts for name in layout} - set(common))
    if dropped:
        _logger.info("left out the columns that not all sources share: %s", ", ".join(dropped))
    return common


def _concatenate(parts: list[AnyDataset]) -> AnyDataset:
    import datasets

    if len(parts) == 1:
        return parts[0]
    names = list(_features(_common([extra_columns(part.features, "image") for part in parts])))
    return datasets.concatenate_datasets([part.select_columns(names) for part in parts]).select_columns(names)
