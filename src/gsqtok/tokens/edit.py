"""Token data sets from token data sets: several put together, one divided."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gsqtok.tokens.manifest import SKIPPED, finish, read_manifest, write_part
from gsqtok.tokens.plan import Plan, Unit, keys_digest, write_plan

_SAME = ("tokenizer", "transform", "codebook_size", "columns", "format")
_HEADER = ("format", "version", "tokenizer", "config", "factor", "groups", "codebook_size", "transform", "model")


def merge(folders: Sequence[str | Path], output: str | Path, *, prefix: bool = False) -> dict[str, Any]:
    """One token data set with the rows of several, made by the same tokenizer in the same way.

    Args:
        folders: finished data sets.
        output: a new folder.
        prefix: put the name of its folder and a slash before every key, for data sets that share keys.

    Returns:
        the manifest.

    Raises:
        ValueError: fewer than two, different tokenizers, transforms or columns, or keys that occur twice.
        FileExistsError: the output exists.
    """
    folders = [Path(folder) for folder in folders]
    if len(folders) < 2:
        raise ValueError("merging takes at least two token data sets")
    manifests = [read_manifest(folder) for folder in folders]
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        for name in _SAME:
            if manifest[name] != manifests[0][name]:
                raise ValueError(f"{folders[0]} and {folder} cannot be merged: they differ in {name}")
    names = [folder.resolve().name for folder in folders]
    if prefix and len(set(names)) < len(names):
        raise ValueError("two of the folders have the same name, which would be the prefix of their keys")
    pieces: list[_Piece] = []
    seen: set[bytes] = set()
    for folder, name, manifest in zip(folders, names, manifests, strict=True):
        for piece in _pieces(folder, manifest):
            piece = piece.prefixed(f"{name}/") if prefix else piece
            hashed = {_hash(key): key for key in piece.all_keys()}
            if twice := hashed.keys() & seen:
                key = hashed[twice.pop()]
                raise ValueError(f"the key '{key}' occurs in two of the data sets: merge with --prefix")
            seen |= hashed.keys()
            pieces.append(piece)
    sources = " and ".join(str(manifest["source"]) for manifest in manifests)
    return _write(Path(output), pieces, manifests[0], {"merged": [m["fingerprint"] for m in manifests]}, sources)


def split(
    folder: str | Path, outputs: tuple[str | Path, str | Path], fraction: float, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide a token data set at random in two, by images: all crops of an image stay together.

    An image's side depends on the seed and its key alone, so a data set that has grown keeps the sides of what it had.

    Args:
        folder: a finished data set.
        outputs: two new folders.
        fraction: of the images for the first, about; between 0 and 1.
        seed: another seed, another division.

    Returns:
        both manifests.

    Raises:
        ValueError: a fraction outside (0, 1).
        FileExistsError: an output exists.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    folder, manifest = Path(folder), read_manifest(folder)

    def first(key: str) -> bool:
        return int.from_bytes(_hash(f"{seed}/{key}")[:8], "big") < fraction * 2**64

    manifests = []
    for side, output in ((True, outputs[0]), (False, outputs[1])):
        pieces = [piece.where(lambda key, side=side: first(key) is side) for piece in _pieces(folder, manifest)]
        changes = {"split": [manifest["fingerprint"], fraction, seed, side]}
        pieces = [piece for piece in pieces if piece.images]
        manifests.append(_write(Path(output), pieces, manifest, changes, manifest["source"]))
    return manifests[0], manifests[1]


class _Piece:
    """The rows of a shard, read when they are needed, and the skipped images of its unit."""

    def __init__(self, path: Path | None, schema: pa.Schema, skipped: list[tuple[str, str]]) -> None:
        self.path, self.schema, self.skipped = path, schema, skipped
        self._prefix, self._wanted = "", None

    def prefixed(self, prefix: str) -> _Piece:
        piece = _Piece(self.path, self.schema, [(prefix + key, reason) for key, reason in self.skipped])
        piece._prefix = prefix
        return piece

    def where(self, wanted: Callable[[str], bool]) -> _Piece:
        piece = _Piece(self.path, self.schema, [(key, reason) for key, reason in self.skipped if wanted(key)])
        piece._wanted = wanted
        return piece

    def table(self) -> pa.Table:
        if self.path is None:
            return self.schema.empty_table()
        table = pq.read_table(self.path)
        if self._wanted is not None:
            table = table.filter(pa.array([self._wanted(key) for key in table["key"].to_pylist()]))
        if self._prefix:
            keys = pc.binary_join_element_wise(self._prefix, table["key"], "")
            table = table.set_column(table.schema.get_field_index("key"), table.schema.field("key"), keys)
        return table

    def all_keys(self) -> list[str]:
        """Of all images, also the skipped ones."""
        keys = []
        if self.path is not None:
            keys = dict.fromkeys(pq.read_table(self.path, columns=["key"])["key"].to_pylist())
            keys = [self._prefix + key for key in keys if self._wanted is None or self._wanted(key)]
        return keys + [key for key, _ in self.skipped]

    @property
    def images(self) -> int:
        return len(self.all_keys())


def _pieces(folder: Path, manifest: dict[str, Any]) -> list[_Piece]:
    skipped: dict[int, list[tuple[str, str]]] = {}
    for row in pq.read_table(folder / SKIPPED).to_pylist():
        skipped.setdefault(row["unit"], []).append((row["key"], row["reason"]))
    files = [part["file"] for part in manifest["units"] if "file" in part]
    schema = pq.read_schema(folder / files[0]) if files else pa.schema([])
    return [
        _Piece(folder / part["file"] if "file" in part else None, schema, skipped.get(number, []))
        for number, part in enumerate(manifest["units"])
    ]


def _write(
    output: Path, pieces: list[_Piece], origin: dict[str, Any], changes: dict[str, Any], source: str
) -> dict[str, Any]:
    """Write a data set aside, then rename its folder."""
    if output.exists():
        raise FileExistsError(f"{output} exists; choose a new folder")
    aside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        units = []
        for number, piece in enumerate(pieces):
            keys = piece.all_keys()
            units.append(Unit(number, len(keys), keys_digest(keys), ()))
        plan = Plan(origin["settings"] | changes, 1, tuple(units))
        write_plan(aside, plan)
        for unit, piece in zip(units, pieces, strict=True):
            write_part(aside, unit, len(units), piece.table(), piece.skipped)
        header = {name: origin[name] for name in _HEADER} | {"source": source}
        manifest = finish(aside, plan, header)
        aside.rename(output)
        return manifest
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
