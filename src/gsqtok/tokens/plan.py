"""The plan of a run: fixed units of work, and a fingerprint of everything that the rows depend on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsqtok.data.sources import ImageSource, Span
from gsqtok.io import read_json, write_bytes

PLAN = "plan.json"
_PIXELS = 2**23  # decoded pixels in a chunk, about: 25 MB


@dataclass(frozen=True)
class Unit:
    """The work that makes one shard.

    Attributes:
        number: of the unit.
        images: rows of the source, all of which end in the shard or are skipped.
        keys: ``keys_digest`` of their keys.
        spans: where they are.
    """

    number: int
    images: int
    keys: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Plan:
    """What ``plan.json`` holds.

    Attributes:
        settings: all that the rows depend on, by name.
        batch_size: found by trying, by the first process; kept so that all others round alike.
        units: the work, in the order of the source.
    """

    settings: dict[str, Any]
    batch_size: int
    units: tuple[Unit, ...]


def keys_digest(keys: list[str]) -> str:
    """SHA-256 of a set of keys."""
    return hashlib.sha256("\0".join(sorted(keys)).encode()).hexdigest()


def fingerprint(settings: dict[str, Any]) -> str:
    """SHA-256 of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def chunk_images(side: int, crops: int, shard_size: int) -> int:
    """Images decoded at once: about 25 MB of pixels, but 8 images at least."""
    return min(shard_size, max(8, min(512, _PIXELS // (side * side * crops))))


def make_units(source: ImageSource, shard_size: int, chunk_size: int) -> tuple[Unit, ...]:
    """Cut a source into units of at most ``shard_size`` images, each of chunks of at most ``chunk_size``.

    Raises:
        ValueError: the source holds no image.
    """
    units: list[Unit] = []
    spans: list[Span] = []
    keys: list[str] = []
    for span in source.spans(chunk_size):
        names = source.keys(span)
        if keys and len(keys) + len(names) > shard_size:
            units.append(Unit(len(units), len(keys), keys_digest(keys), tuple(spans)))
            spans, keys = [], []
        spans.append(span)
        keys += names
    if keys:
        units.append(Unit(len(units), len(keys), keys_digest(keys), tuple(spans)))
    if not units:
        raise ValueError("the source holds no image")
    return tuple(units)


def load_or_make(
    folder: Path, settings: dict[str, Any], make: Callable[[], Plan], *, first: bool = True, patience: float = 86_400
) -> Plan:
    """The plan in a folder, made by the first process and awaited by the others.

    Raises:
        ValueError: the folder holds another run; the message names both fingerprints and what differs.
        TimeoutError: no plan appeared.
    """
    path = folder / PLAN
    deadline = time.monotonic() + patience
    while not path.exists():
        if first:
            write_plan(folder, make())
        elif time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not appear: is the process of rank 0 running?")
        else:
            time.sleep(0.2)
    plan = read_plan(folder)
    if plan.settings != settings:
        raise ValueError(_refusal(folder, plan.settings, settings))
    return plan


def read_plan(folder: Path) -> Plan:
    """Read the plan of a folder.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: a file of another kind.
    """
    path = folder / PLAN
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no {PLAN}: it was not written by gsqtok tokenize")
    try:
        values = read_json(path)
        units = []
        for number, (images, keys, spans) in enumerate(values["units"]):
            units.append(Unit(number, images, keys, tuple(Span(*span) for span in spans)))
        if values["fingerprint"] != fingerprint(values["settings"]):
            raise ValueError("its settings are not as they were written")
        return Plan(values["settings"], values["batch_size"], tuple(units))
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not the plan of a token data set ({error})") from error


def write_plan(folder: Path, plan: Plan) -> None:
    """Write plan.json."""
    units = [[unit.images, unit.keys, unit.spans] for unit in plan.units]
    values = {"fingerprint": fingerprint(plan.settings), "settings": plan.settings, "batch_size": plan.batch_size}
    write_bytes(folder / PLAN, json.dumps(values | {"units": units}).encode())


def _refusal(folder: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    changes = [
        f"{name} was {_short(theirs.get(name))}, is {_short(ours.get(name))}"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]
    return (
        f"{folder} was begun with other settings: its fingerprint is {fingerprint(theirs)[:16]}, that of this command "
        f"{fingerprint(ours)[:16]} ({'; '.join(changes)}). Repeat the first command, or choose another -o"
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:16]}..." if len(text) == 64 else text
