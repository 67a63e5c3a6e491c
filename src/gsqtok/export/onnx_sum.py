"""Sums of int64 in an ONNX graph that stay exact: onnxruntime adds them up as float64, whose integers end at 2^53.

An index of FSQ, LFQ or BSQ is such a sum over the channels of a group, and has up to 62 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxscript import opset18 as op

INT64 = 7  # ONNX's number of the type
HALF = 1 << 31  # both halves of a number, and sums of millions of them, stay far below 2^53


def translate_sum(
    values: Any, dim: int | Sequence[int] | None = None, keepdim: bool = False, dtype: int | None = None
) -> Any:
    """The translation of ``torch.sum`` over dimensions that ``torch.onnx.export`` is given.

    Args:
        values: numbers of any type in the graph.
        dim: dimensions to sum over; None for all.
        keepdim: keep them, with size 1.
        dtype: ONNX's number of the type of the sum; None or below 0 for that of the values.
    """
    axes: list[Any] = [] if dim is None else [op.Constant(value_ints=[dim] if isinstance(dim, int) else list(dim))]

    def add_up(x: Any) -> Any:
        return op.ReduceSum(x, *axes, keepdims=int(keepdim))

    if values.dtype == INT64:
        half = op.Constant(value_int=HALF)
        low = op.Mod(values, half)  # not negative, whatever the sign
        total = op.Add(op.Mul(add_up(op.Div(op.Sub(values, low), half)), half), add_up(low))
    else:
        total = add_up(values)
    return total if dtype is None or dtype < 0 else op.Cast(total, to=dtype)
