"""Which units are done, and the manifest that sums them up when all are."""

from __future__ import annotations

import datetime
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import gsqtok
from gsqtok.io import read_json, write_bytes
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokens.plan import Plan, Unit, fingerprint, read_plan
from gsqtok.tokens.shards import shard_name, write_shard

FORMAT = 1
MANIFEST = "manifest.json"
SKIPPED = "skipped.parquet"
PARTS = "parts"
_SKIPPED_SCHEMA = pa.schema([("key", pa.string()), ("reason", pa.string()), ("unit", pa.int32())])


def write_part(folder: Path, unit: Unit, count: int, table: pa.Table, skipped: Sequence[tuple[str, str]]) -> None:
    """Write a unit's shard, then the part that says that it is done. A unit without a readable image has no shard."""
    images = unit.images - len(skipped)
    part: dict[str, Any] = {"images": images, "rows": len(table), "keys": unit.keys, "skipped": list(skipped)}
    if len(table):
        name = shard_name(unit.number, count)
        part |= {"file": name, "tokens": sum(len(chunk.flatten()) for chunk in table["tokens"].chunks)}
        part |= write_shard(table, folder / name)
    write_bytes(_part(folder, unit.number), json.dumps(part).encode())


def done_units(folder: Path, plan: Plan) -> set[int]:
    """Numbers of the units whose part is there and whose shard has the size that it says."""
    return {unit.number for unit in plan.units if _part_of(folder, unit) is not None}


def _part_of(folder: Path, unit: Unit) -> dict[str, Any] | None:
    """What the part of a unit says; None where it is missing or damaged, so that the unit is done again."""
    try:
        part = read_json(_part(folder, unit.number))
        skipped = [(str(key), str(reason)) for key, reason in part["skipped"]]
        whole = part["keys"] == unit.keys and part["images"] + len(skipped) == unit.images and part["rows"] >= 0
        if "file" in part:
            whole &= (folder / part["file"]).stat().st_size == part["bytes"] and part["tokens"] >= 0
            whole &= isinstance(part["sha256"], str)
        return part if whole else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def finish(folder: Path, plan: Plan, header: dict[str, Any]) -> dict[str, Any]:
    """Write skipped.parquet and manifest.json; all units must be done. Several processes may do so at once.

    Returns:
        the manifest.
    """
    parts = [part for unit in plan.units if (part := _part_of(folder, unit)) is not None]
    skipped = [(key, reason, unit) for unit, part in enumerate(parts) for key, reason in part.pop("skipped")]
    columns = list(zip(*skipped, strict=True)) or [()] * len(_SKIPPED_SCHEMA)
    buffer = io.BytesIO()
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, _SKIPPED_SCHEMA, strict=True)], _SKIPPED_SCHEMA)
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(folder / SKIPPED, buffer.getbuffer())
    manifest = header | {
        "fingerprint": fingerprint(plan.settings),
        "settings": plan.settings,
        "columns": [name for name, _ in plan.settings["columns"]],
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "images": sum(part["images"] for part in parts),
        "rows": sum(part["rows"] for part in parts),
        "tokens": sum(part.get("tokens", 0) for part in parts),
        "bytes": sum(part.get("bytes", 0) for part in parts),
        "skipped": {"file": SKIPPED, "rows": len(table), "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest()},
        "units": parts,
    }
    write_bytes(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read the manifest of a finished token data set.

    Raises:
        FileNotFoundError: no such folder, or one that gsqtok did not write.
        ValueError: not finished, or not a manifest.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    path = folder / MANIFEST
    if not path.exists():
        plan = read_plan(folder)
        done = len(done_units(folder, plan))
        raise ValueError(f"{folder} is not finished: {done} of {len(plan.units)} shards; repeat gsqtok tokenize")
    try:
        manifest = read_json(path)
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
        return manifest
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not the manifest of a token data set ({error})") from error


def read_skipped(folder: Path) -> dict[int, list[tuple[str, str]]]:
    """Read (key, reason) of the skipped images, by the number of their unit."""
    by_unit: dict[int, list[tuple[str, str]]] = {}
    for row in pq.read_table(folder / SKIPPED).to_pylist():
        by_unit.setdefault(row["unit"], []).append((row["key"], row["reason"]))
    return by_unit


def header(
    tokenizer: ImageTokenizer,
    transform: dict[str, Any],
    groups: int | None = None,
    allocation: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What every shard and the manifest say of their origin; ``allocation``: how positions get groups of their own."""
    own = {
        "format": FORMAT,
        "version": gsqtok.__version__,
        "tokenizer": tokenizer.tokens_fingerprint(),
        "config": json.loads(json.dumps(tokenizer.config.to_dict())),
        "factor": tokenizer.factor,
        "groups": tokenizer.quantizer.tokens_of(groups),
        "codebook_size": tokenizer.quantizer.codebook_size,
        "transform": transform,
    }
    return own if allocation is None else own | {"allocation": allocation}


def _part(folder: Path, number: int) -> Path:
    return folder / PARTS / f"{number:05d}.json"
