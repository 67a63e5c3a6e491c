"""What stands around the search in a quantizer with a codebook: one kernel each way, and one for the loss.

A program takes some positions with all their groups: tiles are (positions, groups, channels of a group).
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl

from gsqtok.search.launches import Launch, Launches

TILE = 2048  # elements


@lru_cache(maxsize=256)
def forward(
    positions: int, groups: int, d: int, v: int, separate: bool, unit: bool, book: float, latent: float, keeps: bool
) -> Launches:
    """The kernels behind the search; ``book`` and ``latent`` are the weights of the losses in their sum.

    ``keeps``: whether differences are stored, which the gradient needs.
    """
    shape, blocks = _shape(positions, groups, d)
    take = Launch(
        _take, (blocks,),
        ("latent", "codebook", "found", "difference", "quantized", "indices", "sums", "invalid", positions, v),
        {"SEPARATE": separate, "UNIT": unit, "KEEPS": keeps, **shape},
    )  # fmt: skip
    mean = Launch(
        _mean, (1,),
        ("sums", "invalid", "loss", "of_book", "of_latent", blocks, positions * groups * d, float(book + latent)), {},
    )  # fmt: skip
    given = ("latent", "codebook", "found", "difference", "quantized", "indices", "loss", "of_book", "of_latent")
    return Launches(given, {"sums": (torch.float32, blocks), "invalid": (torch.int32, blocks)}, [take, mean])


@lru_cache(maxsize=256)
def backward(
    positions: int, groups: int, d: int, v: int, separate: bool, unit: bool, book: float, latent: float,
    strides: tuple[int, ...], present: tuple[bool, ...], learns: bool,
) -> Launches:  # fmt: skip
    """The kernel before the codebook's gradient; ``present``: which of the gradients of the outputs there are."""
    shape, blocks = _shape(positions, groups, d)
    given = ("latent", "difference", "found", "quantized", "loss", "of_book", "of_latent", "grad", "rows", "taken")
    spread = Launch(
        _spread, (blocks,),
        (*given, positions, v, *strides, 2 / (positions * groups * d), float(book), float(latent)),
        {
            "QUANTIZED": present[0], "LOSS": present[1], "OF_BOOK": present[2], "OF_LATENT": present[3],
            "LEARNS": learns, "SEPARATE": separate, "UNIT": unit, **shape,
        },
    )  # fmt: skip
    return Launches(given, {}, [spread])


def _shape(positions: int, groups: int, d: int) -> tuple[dict[str, int], int]:
    padded = {"GP": 1 << (groups - 1).bit_length(), "DP": 1 << (d - 1).bit_length()}
    at_once = max(1, TILE // (padded["GP"] * padded["DP"]))
    return {"G": groups, "D": d, "BP": at_once, **padded}, -(-positions // at_once)


@triton.jit
def _unit(x):
    """Rows scaled to length 1 as `normalize` does, the largest entry of each, and its length over that."""
    largest = tl.max(tl.abs(x), axis=2)[:, :, None]
    scaled = x / tl.maximum(largest, 1.1754943508222875e-38)
    length = tl.maximum(tl.sqrt(tl.sum(scaled * scaled, axis=2)), 1.1754943508222875e-38)[:, :, None]
    return scaled / length, largest, length


@triton.jit
def _places(P, G: tl.constexpr, D: tl.constexpr, BP: tl.constexpr, GP: tl.constexpr, DP: tl.constexpr):
    """Of a program's tile: positions, groups, channels, and what is inside, without and with channels."""
    position = (tl.program_id(0) * BP + tl.arange(0, BP)).to(tl.int64)[:, None, None]
    group = tl.arange(0, GP)[None, :, None]
    channel = tl.arange(0, DP)[None, None, :]
    row_inside = (position < P) & (group < G)
    return position, group, channel, row_inside, row_inside & (channel < D)


@triton.jit(do_not_specialize=["P", "V"])
def _take(
    latent, codebook, found, differences, quantized, indices, sums, invalid, P, V,
    SEPARATE: tl.constexpr, UNIT: tl.constexpr, KEEPS: tl.constexpr,
    G: tl.constexpr, D: tl.constexpr, BP: tl.constexpr, GP: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Codewords and final indices, and of each block the sum of squared differences and whether a position is invalid.

    A position of which one group has no codeword has none: index -1, value NaN, and no part in the sum.
    """
    position, group, channel, row_inside, inside = _places(P, G, D, BP, GP, DP)
    row = position * G + group
    index = tl.load(found + row, mask=row_inside, other=0)
    bad = tl.min(index, axis=1)[:, :, None] < 0
    x = tl.load(latent + row * D + channel, mask=inside & (bad == 0), other=0.0)
    if UNIT:
        x, _, _ = _unit(x)
    taken = tl.maximum(index, 0)
    if SEPARATE:
        taken += group * V.to(tl.int64)
    c = tl.load(codebook + taken * D + channel, mask=inside, other=0.0)
    tl.store(quantized + row * D + channel, tl.where(bad, float("nan"), c), mask=inside)
    tl.store(indices + row, tl.where(bad, -1, index), mask=row_inside)
    difference = tl.where(inside & (bad == 0), x - c, 0.0)
    if KEEPS:
        tl.store(differences + row * D + channel, difference, mask=inside)
    total = tl.sum(tl.sum(tl.sum(difference * difference, axis=2), axis=1), axis=0)
    tl.store(sums + tl.program_id(0), total)
    wrong = tl.max(tl.max(tl.max((bad & row_inside).to(tl.int32), axis=2), axis=1), axis=0)
    tl.store(invalid + tl.program_id(0), wrong)


@triton.jit(do_not_specialize=["blocks", "elements"])
def _mean(sums, invalid, loss, of_book, of_latent, blocks, elements, weight):
    """The mean square, and the weighted sum of both losses, which are equal; NaN where a position is invalid."""
    total = tl.zeros((1024,), tl.float64)
    wrong = tl.zeros((1024,), tl.int32)
    for start in range(0, blocks, 1024):
        block = start + tl.arange(0, 1024)
        total += tl.load(sums + block, mask=block < blocks, other=0.0).to(tl.float64)
        wrong |= tl.load(invalid + block, mask=block < blocks, other=0)
    value = (tl.sum(total, axis=0) / elements).to(tl.float32)
    tl.store(of_book, value)
    tl.store(of_latent, value)
    tl.store(loss, tl.where(tl.max(wrong, axis=0) > 0, float("nan"), weight * value))


@triton.jit(do_not_specialize=["P", "V"])
def _spread(
    latent, differences, found, of_quantized, of_loss, of_book, of_latent, grad, rows, taken,
    P, V, stride_p, stride_c, twice_over_elements, book_weight, latent_weight,
    QUANTIZED: tl.constexpr, LOSS: tl.constexpr, OF_BOOK: tl.constexpr, OF_LATENT: tl.constexpr,
    LEARNS: tl.constexpr, SEPARATE: tl.constexpr, UNIT: tl.constexpr,
    G: tl.constexpr, D: tl.constexpr, BP: tl.constexpr, GP: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """The latents' gradient, and of each row what it adds to the gradient of which codeword."""
    position, group, channel, row_inside, inside = _places(P, G, D, BP, GP, DP)
    row = position * G + group
    index = tl.load(found + row, mask=row_inside, other=0)
    inside_good = inside & (tl.min(index, axis=1)[:, :, None] >= 0)
    difference = tl.load(differences + row * D + channel, mask=inside, other=0.0)
    to_latent = 0.0
    to_book = 0.0
    if LOSS:
        to_latent += tl.load(of_loss) * latent_weight
        to_book += tl.load(of_loss) * book_weight
    if OF_LATENT:
        to_latent += tl.load(of_latent)
    if OF_BOOK:
        to_book += tl.load(of_book)
    g = difference * (to_latent * twice_over_elements)
    if QUANTIZED:
        at = of_quantized + position * stride_p + (group * D + channel).to(tl.int64) * stride_c
        g += tl.load(at, mask=inside_good, other=0.0).to(tl.float32)
    if UNIT:  # rows that are all but zero get none, see `normalize`
        x, largest, length = _unit(tl.load(latent + row * D + channel, mask=inside_good, other=0.0))
        g = (g - x * tl.sum(g * x, axis=2)[:, :, None]) / length / tl.maximum(largest, 1.1754943508222875e-38)
        g = tl.where(largest > 1e-12, g, 0.0)
    tl.store(grad + row * D + channel, tl.where(inside_good, g, 0.0), mask=inside)
    if LEARNS:
        tl.store(rows + row * D + channel, difference * (-to_book * twice_over_elements), mask=inside)
        index = tl.maximum(index, 0)
        if SEPARATE:
            index += group * V.to(tl.int64)
        tl.store(taken + row, index, mask=row_inside)
