"""Token data sets from token data sets: several put together, one divided."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gsqtok.tokens.manifest import finish, read_manifest, read_skipped, write_part
from gsqtok.tokens.plan import Plan, Unit, keys_digest, write_plan

_SAME = ("tokenizer", "transform", "codebook_size", "columns", "format", "allocation")
_HEADER = (
    "format",
    "version",
    "tokenizer",
    "config",
    "factor",
    "groups",
    "codebook_size",
    "transform",
    "model",
    "allocation",
)


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
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise ValueError("merging takes at least two token data sets")
    manifests = [read_manifest(folder) for folder in paths]
    for folder, manifest in zip(paths[1:], manifests[1:], strict=True):
        for name in _SAME:
            if manifest.get(name) != manifests[0].get(name):
                raise ValueError(f"{paths[0]} and {folder} cannot be merged: they differ in {name}")
    names = [folder.resolve().name for folder in paths]
    if prefix and len(set(names)) < len(names):
        raise ValueError("two of the folders have the same name, which would be the prefix of their keys")
    pieces: list[_Piece] = []
    seen: set[bytes] = set()
    for folder, name, manifest in zip(paths, names, manifests, strict=True):
        rekey = (lambda key, name=name: f"{name}/{key}") if prefix else str
        for piece in _pieces(folder, manifest, rekey):
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

    def only(key: str, side: bool) -> str | None:
        first = int.from_bytes(_hash(f"{seed}/{key}")[:8], "big") < fraction * 2**64
        return key if first is side else None

    manifests = []
    for side, output in ((True, outputs[0]), (False, outputs[1])):
        changes = {"split": [manifest["fingerprint"], fraction, seed, side]}
        pieces = _pieces(folder, manifest, functools.partial(only, side=side))
        pieces = [piece for piece in pieces if piece.all_keys()]
        manifests.append(_write(Path(output), pieces, manifest, changes, manifest["source"]))
    return manifests[0], manifests[1]


@dataclass(frozen=True)
class _Piece:
    """The rows of a shard, read when they are needed, and the skipped images of its unit.

    ``rekey`` gives an image its new key, or None to leave it out.
    """

    path: Path | None
    schema: pa.Schema
    own_skipped: list[tuple[str, str]]
    rekey: Callable[[str], str | None] = str

    def table(self) -> pa.Table:
        if self.path is None:
            return self.schema.empty_table()
        table = pq.read_table(self.path)
        keys = pa.array(map(self.rekey, table["key"].to_pylist()), pa.string())
        place = table.schema.get_field_index("key")
        return table.set_column(place, table.schema.field(place), keys).filter(keys.is_valid())

    def skipped(self) -> list[tuple[str, str]]:
        return [(new, reason) for key, reason in self.own_skipped if (new := self.rekey(key)) is not None]

    def all_keys(self) -> list[str]:
        """Of all images, also the skipped ones."""
        rows = [] if self.path is None else pq.read_table(self.path, columns=["key"])["key"].to_pylist()
        keys = dict.fromkeys([*rows, *(key for key, _ in self.own_skipped)])
        return [new for key in keys if (new := self.rekey(key)) is not None]


def _pieces(folder: Path, manifest: dict[str, Any], rekey: Callable[[str], str | None] = str) -> list[_Piece]:
    skipped = read_skipped(folder)
    paths = [folder / part["file"] if "file" in part else None for part in manifest["units"]]
    schema = next((pq.read_schema(path) for path in paths if path is not None), pa.schema([]))
    return [_Piece(path, schema, skipped.get(number, []), rekey) for number, path in enumerate(paths)]


def _write(
    output: Path, pieces: list[_Piece], origin: dict[str, Any], changes: dict[str, Any], source: str
) -> dict[str, Any]:
    """Write a data set to a temporary folder, then rename that."""
    if output.exists():
        raise FileExistsError(f"{output} exists; choose a new folder")
    temporary = output.with_name(f".{output.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        keys = [piece.all_keys() for piece in pieces]
        units = [Unit(number, len(own), keys_digest(own), ()) for number, own in enumerate(keys)]
        plan = Plan(origin["settings"] | changes, 1, tuple(units))
        write_plan(temporary, plan)
        for unit, piece in zip(units, pieces, strict=True):
            write_part(temporary, unit, len(units), piece.table(), piece.skipped())
        header = {name: origin[name] for name in _HEADER if name in origin} | {"source": source}
        manifest = finish(temporary, plan, header)
        temporary.rename(output)
        return manifest
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
