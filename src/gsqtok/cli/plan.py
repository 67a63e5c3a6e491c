"""gsqtok plan."""

from __future__ import annotations

import json as text_of
from itertools import groupby
from typing import TYPE_CHECKING

from gsqtok.cli.options import console

if TYPE_CHECKING:
    from gsqtok.quantizers.planning import Setting

NOTES = """G x d: groups and channels of each. bits: a position. params: numbers stored for the codebook.
search: multiply-adds to find one position's tokens.
error: mean squared distance of a random code on a group's unit sphere, before training (2 is a guess);
bound: what no code of that size beats (docs/limits.md); neither is known off the sphere.
What a setting does to images only training tells."""


def plan(
    *, bits_per_pixel: float, factor: int = 16, methods: str = "*", tolerance: float = 0.02, json: bool = False
) -> None:
    """List the settings of all quantizers that spend the same bits per pixel, with what they cost.

    Args:
        bits_per_pixel: bits of the tokens for each image pixel
        factor: down-sampling factor of the encoder
        methods: shell pattern of methods, such as gsq or 'rs*'
        tolerance: relative difference in bits that still counts
        json: print JSON; each entry's options build the quantizer

    Example:
          gsqtok plan --bits-per-pixel 0.28 --factor 16
          gsqtok plan --bits-per-pixel 0.5625 --factor 8 --methods gsq --json
    """
    from gsqtok.quantizers import planning

    settings = planning.plan(bits_per_pixel, factor=factor, methods=methods, tolerance=tolerance)
    if json:
        console.print(text_of.dumps([vars(s) | {"group_dim": s.group_dim} for s in settings], indent=1))
        return

    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{bits_per_pixel:g} bits/px at f{factor}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("method", no_wrap=True)
    for name in ("G x d", "stages", "V or levels", "bits", "params", "search", "error", "bound"):
        table.add_column(name, justify="right", no_wrap=True)
    method = ""
    for s in settings:
        if method and s.method != method:
            table.add_row()
        method = s.method
        table.add_row(
            *(method, f"{s.groups} x {s.group_dim}", str(s.stages) if s.stages > 1 else "", _codewords(s)),
            *(f"{s.bits:.4g}", _short(s.codebook_parameters), _short(s.search_cost)),
            *(_error(s.expected_error), _error(s.error_bound)),
        )
    console.print(table)
    console.print(NOTES)


def _codewords(setting: Setting) -> str:
    if levels := setting.options.get("levels"):
        return " ".join(f"{level}^{len(list(run))}" for level, run in groupby(levels))
    size = setting.codebook_size
    return f"{size:,}" if size < 1 << 30 else f"2^{size.bit_length() - 1}"


def _short(count: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
