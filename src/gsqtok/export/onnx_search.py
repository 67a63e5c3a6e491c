"""The nearest codeword as an ONNX graph: what ``gsqtok::nearest`` becomes in an exported encoder.

A Scan takes a few latents at a time, so that at most ``SCORES`` scores exist at once, or one latent's if there are more
codewords. Arithmetic is float64 with the rules of ``gsqtok.search``: the same choice wherever two codewords differ by
more than float64's rounding, and the lowest index among those that do not.

Functions with ``@script`` are translated, not run; the others run while the exporter records what they call.
"""

from __future__ import annotations

from typing import Any

from onnxscript import DOUBLE, INT64, graph, script
from onnxscript import opset18 as op

SCORES = 1 << 21  # 16 MiB of float64
FLOAT64 = 11  # ONNX's number of the type
TINY = 1.1754943508222875e-38  # smallest normal float32
EPS = 2.0**-52


def translate_nearest(latents: Any, codebook: Any, metric: str, use_triton: bool | None = None) -> Any:
    """The translation of ``torch.ops.gsqtok.nearest`` that ``torch.onnx.export`` is given.

    Args:
        latents: (N, d) float32 in the graph.
        codebook: (V, d) float32 in the graph; V and d are fixed.
        metric: as in ``gsqtok.search.nearest``.
        use_triton: has no meaning in a graph.

    Returns:
        (N,) int64 in the graph.
    """
    d = codebook.shape[1]
    if d == 1:
        found = _on_line(latents, codebook)
    elif d == 2 and metric == "cosine":
        found = _on_circle(latents, codebook)
    elif metric == "cosine":
        found = _by_product(_unit(latents), _unit(codebook))
    else:
        found = _by_distance(latents, codebook)
    return op.Slice(op.Reshape(found, [-1]), [0], _length(latents))


def _on_line(latents: Any, codebook: Any) -> Any:
    """d = 1: by value, whatever the metric."""
    c = op.Reshape(op.Cast(codebook, to=FLOAT64), [1, -1])
    return _scan_line(_blocks(op.Cast(latents, to=FLOAT64), codebook, SCORES), c)


def _on_circle(latents: Any, codebook: Any) -> Any:
    """d = 2: by the least distance, from differences, which keep the digits that a product rounds off.

    Neighbours among 262,144 codewords are 2e-5 apart, but 3e-10 in the product. A zero row is at a right angle, which
    is a squared distance of 2: one more than the difference says.
    """
    c = _unit(codebook)
    length = op.ReduceSum(op.Mul(c, c), [1])
    is_zero = op.Cast(op.Less(length, _double(0.5)), to=FLOAT64)
    coordinates = op.Transpose(op.Concat(c, is_zero, axis=1), perm=[1, 0])
    return _scan_circle(_blocks(_unit(latents), codebook, SCORES // 4), op.Unsqueeze(coordinates, [1]))


def _by_distance(latents: Any, codebook: Any) -> Any:
    """|z - c|^2 = |z|^2 - 2 (z.c - |c|^2 / 2), both shifted by the median codeword, which keeps digits.

    The median, and a tolerance for each codeword by its own length, since a far one must not make the others equal.
    """
    wide = op.Cast(codebook, to=FLOAT64)
    upper, _ = op.TopK(op.Transpose(wide, perm=[1, 0]), _whole(codebook.shape[0] // 2 + 1), axis=1)
    centre = op.Reshape(op.ReduceMin(upper, [1]), [1, -1])
    c = op.Transpose(op.Sub(wide, centre), perm=[1, 0])
    half = op.Mul(op.ReduceSum(op.Mul(c, c), [0]), _double(0.5))
    roundings = _roundings(codebook)
    length = op.Mul(op.Sqrt(op.ReduceSum(op.Mul(c, c), [0])), roundings)
    blocks = _blocks(op.Sub(op.Cast(latents, to=FLOAT64), centre), codebook, SCORES // 4)
    return _scan_distances(blocks, c, half, length, op.Mul(half, roundings))


def _by_product(z: Any, c: Any) -> Any:
    """The lowest index within rounding of the largest product."""
    lengths = op.Sqrt(op.ReduceSum(op.Mul(c, c), [1], keepdims=0))
    return _scan_products(_blocks(z, c, SCORES), op.Transpose(c, perm=[1, 0]), op.Mul(lengths, _roundings(c)))


def _roundings(rows: Any) -> Any:
    """What a sum of d products is off by at most, and then some: (d + 5) roundings, relative to the lengths."""
    return op.Mul(op.Add(op.Cast(op.Shape(rows, start=1, end=2), to=FLOAT64), _double(5.0)), _double(EPS))


def _unit(rows: Any) -> Any:
    """Rows as float64, scaled to length 1; a zero row stays zero. By the largest entry first, against overflow."""
    wide = op.Cast(rows, to=FLOAT64)
    scaled = op.Div(wide, op.Max(op.ReduceMax(op.Abs(wide), [1]), _double(TINY)))
    return op.Div(scaled, op.Max(op.Sqrt(op.ReduceSum(op.Mul(scaled, scaled), [1])), _double(TINY)))


def _blocks(z: Any, codebook: Any, scores: int) -> Any:
    """(N, k) -> (blocks, rows, k) with rows * V <= scores where that is possible, filled up with zeros."""
    n, zero = _length(z), _whole(0)
    rows = op.Max(_whole(1), op.Min(op.Div(_whole(scores), _length(codebook)), n))
    missing = op.Mod(op.Neg(n), rows)
    padded = op.Pad(z, op.Concat(zero, zero, missing, zero, axis=0))
    return op.Reshape(padded, op.Concat(op.Div(op.Add(n, missing), rows), rows, op.Shape(z, start=1, end=2), axis=0))


def _length(rows: Any) -> Any:
    return op.Shape(rows, start=0, end=1)


def _whole(value: int) -> Any:
    return op.Constant(value_ints=[value])


def _double(value: float) -> Any:
    return op.Cast(op.Constant(value_float=value), to=FLOAT64)


@script(default_opset=op)
def _scan_products(blocks: DOUBLE[...], codebook: DOUBLE[...], slack: DOUBLE[...]) -> INT64[...]:
    @graph()
    def search(block: DOUBLE[...]) -> INT64[...]:
        products = op.MatMul(block, codebook)
        best = op.ReduceMax(products, op.Constant(value_ints=[1]))
        length = op.Sqrt(op.ReduceSum(block * block, op.Constant(value_ints=[1])))
        near = products >= best - length * op.Gather(slack, op.ArgMax(products, axis=1))
        return op.ArgMax(op.Cast(near, to=2), axis=1, keepdims=0)

    return op.Scan(blocks, body=search, num_scan_inputs=1)


@script(default_opset=op)
def _scan_distances(
    blocks: DOUBLE[...], codebook: DOUBLE[...], half: DOUBLE[...], by_length: DOUBLE[...], fixed: DOUBLE[...]
) -> INT64[...]:
    @graph()
    def search(block: DOUBLE[...]) -> INT64[...]:
        scores = op.MatMul(block, codebook) - half
        length = op.Sqrt(op.ReduceSum(block * block, op.Constant(value_ints=[1])))
        error = length * by_length + fixed
        near = scores + error >= op.ReduceMax(scores - error, op.Constant(value_ints=[1]))
        return op.ArgMax(op.Cast(near, to=2), axis=1, keepdims=0)

    return op.Scan(blocks, body=search, num_scan_inputs=1)


@script(default_opset=op)
def _scan_line(blocks: DOUBLE[...], codebook: DOUBLE[...]) -> INT64[...]:
    @graph()
    def search(block: DOUBLE[...]) -> INT64[...]:
        return op.ArgMin(op.Abs(block - codebook), axis=1, keepdims=0)

    return op.Scan(blocks, body=search, num_scan_inputs=1)


@script(default_opset=op)
def _scan_circle(blocks: DOUBLE[...], codebook: DOUBLE[...]) -> INT64[...]:
    @graph()
    def search(block: DOUBLE[...]) -> INT64[...]:
        x, y = op.Split(block, num_outputs=2, axis=1)
        cx, cy, is_zero = op.Split(codebook, num_outputs=3, axis=0)
        dx = x - op.Squeeze(cx, op.Constant(value_ints=[0]))
        dy = y - op.Squeeze(cy, op.Constant(value_ints=[0]))
        distance = dx * dx + dy * dy + op.Squeeze(is_zero, op.Constant(value_ints=[0]))
        # A zero latent is equally far from all: the rounding of unit lengths must not choose for it.
        is_not_zero = op.Cast(x * x + y * y, to=9)
        return op.ArgMin(distance, axis=1, keepdims=0) * op.Squeeze(
            op.Cast(is_not_zero, to=7), op.Constant(value_ints=[1])
        )

    return op.Scan(blocks, body=search, num_scan_inputs=1)
