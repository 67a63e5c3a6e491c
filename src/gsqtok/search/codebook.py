"""A codebook with what searches prepare of it, kept on a CPU for the next search of the same one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from gsqtok.search.rows import require_finite

NUMBERS = 1 << 24  # in all codebooks that are kept together
MOST = 16  # codebooks that are kept: a residual quantizer searches those of its stages in turn
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

T = TypeVar("T")


class Codebook:
    """Codewords (V, d) and what has been prepared of them; or one codebook for each group (G, V, d).

    Attributes:
        rows: the codewords. They must not change.
        known: whether an earlier search had the same codewords.
        searched: how many latents have been searched in it.
    """

    def __init__(self, rows: Tensor):
        self.rows = rows
        self.known = False
        self.searched = 0
        self._prepared: dict[tuple[Any, ...], Any] = {}

    def of_groups(self) -> list[Codebook]:
        """Return the codebook of each group, as long known as this one; only for rows (G, V, d)."""
        groups = self.prepared(_each)
        for group in groups:
            group.known = self.known
        return groups

    def prepared(self, prepare: Callable[..., T], *options: Any) -> T:
        """Return `prepare(rows, *options)`, made once."""
        key = (prepare, *options)
        if key not in self._prepared:
            self._prepared[key] = prepare(self.rows, *options)
        value: T = self._prepared[key]
        return value


def _each(rows: Tensor) -> list[Codebook]:
    return [Codebook(group) for group in rows]


_kept: list[Codebook] = []


def kept(rows: Tensor) -> Codebook:
    """Return the kept codebook with these values, or a new one that is kept from now on; on a CPU only.

    It is recognised by its values. A tensor's version counter would not do, since writes through `tensor.data` or NumPy
    do not count. To compare all values takes less time than the check for NaN and infinity, which is then needless.

    Raises:
        ValueError: the rows hold NaN or infinity.
    """
    bits = _bits(rows)
    for codebook in _kept:
        if codebook.rows.dtype == rows.dtype and torch.equal(_bits(codebook.rows), bits):
            codebook.known = True
            _keep(codebook)
            return codebook
    require_finite("codebook", rows)
    codebook = Codebook(rows.clone(memory_format=torch.contiguous_format))
    _keep(codebook)
    return codebook


def _bits(rows: Tensor) -> Tensor:
    """The numbers as integers, which take a seventh of the time to compare."""
    return rows.view(_INTEGERS[rows.itemsize])


def _keep(codebook: Codebook) -> None:
    """Make it the latest of those that are kept, and forget the earliest beyond what may be kept."""
    global _kept
    if _kept and codebook is _kept[0]:
        return
    room, latest = NUMBERS, []
    for other in [codebook, *(other for other in _kept if other is not codebook)][:MOST]:
        room -= other.rows.numel()
        if room < 0:
            break
        latest.append(other)
    _kept = latest
