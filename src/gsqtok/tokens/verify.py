"""Proof that a token data set is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from gsqtok.io import one_line, sha256_of
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokens.dataset import allocated, require
from gsqtok.tokens.layout import COUNTS, restored
from gsqtok.tokens.manifest import SKIPPED, read_manifest, read_skipped
from gsqtok.tokens.plan import keys_digest, read_plan
from gsqtok.tokens.shards import read_header


def verify(folder: str | Path, on_progress: Callable[[int], None] = lambda shards: None) -> list[str]:
    """Check every byte and row of a token data set against its manifest and plan.

    Complete means: for each unit of the plan, the keys in its shard and of its skipped images are together the planned
    keys, each once, with all their crops. Besides, every file has the hash that the manifest says, and every token
    grid its size and a number below V in each place.

    Args:
        folder: of the data set.
        on_progress: called for each unit.

    Returns:
        what is wrong, a line each; empty if nothing is.

    Raises:
        FileNotFoundError, ValueError: see ``read_manifest``.
    """
    folder = Path(folder)
    manifest, plan = read_manifest(folder), read_plan(folder)
    problems = []
    if len(manifest["units"]) != len(plan.units):
        return [f"the manifest has {len(manifest['units'])} units, the plan {len(plan.units)}"]
    try:
        _check_hash(folder / SKIPPED, manifest["skipped"]["sha256"])
        skipped = read_skipped(folder)
    except (OSError, ValueError) as error:
        return [f"{SKIPPED}: {one_line(error)}"]
    seen: set[bytes] = set()
    images = 0
    for unit, part in zip(plan.units, manifest["units"], strict=True):
        try:
            keys = _shard_keys(folder, manifest, part) if "file" in part else []
        except (OSError, ValueError) as error:
            problems.append(f"{part['file']}: {one_line(error)}")
            on_progress(1)
            continue
        images += len(keys)
        name = part.get("file", f"unit {unit.number}")
        keys += [key for key, _ in skipped.get(unit.number, [])]
        if len(keys) != unit.images:
            problems.append(f"{name}: {len(keys)} images written and skipped, {unit.images} in the source")
        elif keys_digest(keys) != unit.keys:
            problems.append(f"{name}: the keys are not those of the source")
        hashed = {hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys}
        if len(hashed) < len(keys) or hashed & seen:
            problems.append(f"{name}: an image is there twice")
        seen |= hashed
        on_progress(1)
    if not problems and images != manifest["images"]:
        problems.append(f"{images} images found, the manifest says {manifest['images']}")
    return problems


def decode_sample(
    folder: str | Path, tokenizer: ImageTokenizer, number: int, seed: int = 0, tile: int | None = None
) -> list[tuple[str, tuple[int, int], Tensor]]:
    """Decode rows chosen at random; ``tile`` is as ``ImageTokenizer.decode`` takes it.

    Returns:
        key, original (height, width), image (3, H, W) in [-1, 1] of each.

    Raises:
        ValueError: another tokenizer than that of the tokens, or tokens that do not decode.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    require(manifest, tokenizer)
    parts = [part for part in manifest["units"] if "file" in part]
    starts = np.cumsum([0] + [part["rows"] for part in parts])
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(starts[-1], min(number, int(starts[-1])), replace=False))
    decoded = []
    for start, part in zip(starts, parts, strict=False):
        rows = [int(row - start) for row in chosen if start <= row < start + part["rows"]]
        if not rows:
            continue
        for row in pq.read_table(folder / part["file"]).take(rows).to_pylist():
            tokens = torch.tensor(row["tokens"])
            if allocated(manifest):
                height, width, groups = row["grid"]
                tokens = restored(tokens, torch.tensor(row[COUNTS]).view(height, width), groups)
            tokens = tokens.reshape(1, *row["grid"])
            image = tokenizer.decode(tokens.to(tokenizer.input_device(tile)), tile=tile)[0].cpu()
            if not image.isfinite().all():
                raise ValueError(f"the tokens of '{row['key']}' decode to numbers that are not finite")
            decoded.append((row["key"], tuple(row["size"]), image))
    return decoded


def _shard_keys(folder: Path, manifest: dict[str, Any], part: dict[str, Any]) -> list[str]:
    """Keys of a shard's images, after all that one can say of the shard alone has been checked."""
    path = folder / part["file"]
    _check_hash(path, part["sha256"])
    header = read_header(path)
    for name in ("tokenizer", "transform", "codebook_size", "groups", "allocation"):
        if header.get(name) != manifest.get(name):
            raise ValueError(f"made with another {name} than the manifest says")
    try:
        table = pq.read_table(path).combine_chunks()
    except pa.ArrowException as error:
        raise ValueError(f"cannot be read: {error}") from error
    if len(table) != part["rows"]:
        raise ValueError(f"{len(table)} rows, the manifest says {part['rows']}")
    tokens = table["tokens"].combine_chunks()
    grids = table["grid"].combine_chunks().flatten().to_numpy().reshape(-1, 3)
    lengths = np.diff(tokens.offsets.to_numpy())
    expected = _kept_tokens(table, grids) if allocated(manifest) else grids.astype(np.int64).prod(1)
    if not (lengths == expected).all() or not (grids[:, 2] == manifest["groups"]).all():
        raise ValueError("a row has more or fewer tokens than its grid")
    if int(tokens.values.to_numpy().max()) >= manifest["codebook_size"]:
        raise ValueError(f"a token is not below the codebook size {manifest['codebook_size']}")
    rows = list(zip(table["key"].to_pylist(), table["crop"].to_pylist(), strict=True))
    keys = list(dict.fromkeys(key for key, _ in rows))
    crops = 10 if manifest["transform"]["crop"] == "ten" else 2 if manifest["transform"]["flip"] else 1
    if rows != [(key, crop) for key in keys for crop in range(crops)]:
        raise ValueError(f"not every image has its {crops} crops, once")
    return keys


def _kept_tokens(table: pa.Table, grids: np.ndarray) -> np.ndarray:
    """How many tokens the counts of each row say; a ValueError for counts that no grid has."""
    counts = table[COUNTS].combine_chunks()
    numbers, offsets = counts.values.to_numpy().astype(np.int64), counts.offsets.to_numpy()
    if not (np.diff(offsets) == grids[:, :2].astype(np.int64).prod(1)).all():
        raise ValueError("a row has counts for more or fewer positions than its grid")
    if len(numbers) and not 1 <= numbers.min() <= numbers.max() <= grids[0, 2]:
        raise ValueError("a position has no group, or more than there are")
    return np.add.reduceat(numbers, offsets[:-1])


def _check_hash(path: Path, expected: str) -> None:
    if sha256_of(path) != expected:
        raise ValueError("not the file that was written: its SHA-256 differs from the manifest's")
