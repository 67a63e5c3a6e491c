"""The nearest codeword on a GPU by a fused kernel: scores live in registers and are never written out.

1. `_prepare` lays the codebook out twice: float16 rows for the tensor cores, and float32 groups for exact scores.
2. `_search` multiplies latents and codewords in float16 (a product of unit rows is then off by at most 2^-10, by
   Cauchy-Schwarz; less where low parts fit beside the high parts in the inner dimension). Of every group of codewords
   only the largest score is kept, in one integer with the group's number, and of all groups the best SLOTS.
3. `_settle` scores the groups within the margin of a latent's best, almost always one, exactly. Where even the last
   slot is within the margin, another group may have been dropped: all those that the slots stand for are scored.

A score is kept as minus a distance (of unit rows: the similarity minus 1), as a group's number takes its last bits. The
similarities of the nearest of many codewords differ in those alone; a distance keeps its first 12, however small it is.

A tensor core leaves each thread with pairs of adjacent columns: of a row one thread holds columns {0, 1, 8, 9, ...},
the next {2, 3, 10, 11, ...}, and so on, four in all. A group is what one thread holds of a tile, so neither its maximum
nor the slots need any exchange between threads. `_prepare` permutes rows such that a group is a run of codewords.
"""

import os
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsqtok.search.launches import Launch, Launches

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_D = 128
SLOTS = 4
PARTS = tl.constexpr(64)
LOWEST = tl.constexpr(-(2**31))
INVALID = tl.constexpr(-1)


def obstacle(latents: Tensor, codebook: Tensor) -> str | None:
    """Why the kernels cannot search these, or None if they can."""
    if not (latents.is_cuda or INTERPRETED):
        return "the kernels need CUDA tensors"
    if latents.is_cuda and _capability(latents.device) < (8, 0):
        return "the kernels need a GPU of compute capability 8.0 or above"
    if latents.dtype not in DTYPES or codebook.dtype not in DTYPES:
        return "the kernels take float32, float16 and bfloat16"
    if latents.shape[-1] > LARGEST_D:
        return f"the kernels take d up to {LARGEST_D}"
    return None


_capability = lru_cache(torch.cuda.get_device_capability)  # which takes the host as long as a launch


@dataclass(frozen=True)
class Plan:
    """Shapes of one search: they change its speed, never its result."""

    rows: int  # latents a block
    codewords: int  # codewords a tile, four groups
    terms: int  # 1: high parts alone; 2: also the latent's low part; 3: also the codeword's
    splits: int  # parts of the codebook searched side by side
    warps: int
    stages: int

    @classmethod
    def choose(cls, n: int, v: int, d: int, metric: str) -> "Plan":
        """The usual plan for n latents and v codewords of dimension d; `benchmarks/search.py --tune` times others."""
        many, few = v >= 1 << 16 and n > 4096, n <= 4096
        if metric == "euclidean":
            # The longest codeword bounds the error of all, and the nearest of many lie close together: exact scores of
            # what lies within the error would cost more than the low parts, which make it small.
            terms = max(1, min(3, 125 // d))
            inner = max(16, _power_of_two_from(terms * d + 3))
            wide = (64, 64 if inner > 128 else 128)
            rows, codewords = wide if inner > 64 else (64, 256) if many else (64 if few else 128, 128)
        else:
            inner = max(16, _power_of_two_from(d))
            terms = min(3, inner // d)
            many &= inner <= 32
            rows, codewords = (64, 64) if inner > 64 else (64, 256) if many else (64 if few else 128, 128)
        tiles = -(-v // codewords)
        splits = min(max(1, (1 << 16) // n), max(1, tiles // 8))
        # A group's number takes 11 bits at most, its score keeps 12. At d <= 4 so many of a large codebook lie within
        # the margin that the slots of a split must stand for fewer.
        splits = max(splits, -(-tiles // (512 if d <= 4 else 2048)))
        large = inner > 64 or (rows + codewords) * inner > 1 << 14  # for three stages on the smaller GPUs
        return cls(rows, codewords, terms, splits, warps=4, stages=2 if large else 3)


def nearest(latents: Tensor, codebook: Tensor, metric: str, plan: Plan | None = None) -> Tensor:
    """Index of the nearest codeword, int64 (N,), of latents (N, d) in a codebook (V, d); -1 where that is undefined.

    Of latents (N, G, d) in codebooks (G, V, d): (N, G). All groups are searched at once, each as if it were alone.
    What decides is float64 throughout: its rounding alone may keep the choice from the best. Euclidean distances are
    summed term by term, as in blocks. No wait for the device.
    """
    launches = _launches(
        latents.shape, codebook.shape, latents.stride(), codebook.stride(), metric, plan, latents.dtype, codebook.dtype
    )
    found = latents.new_empty(latents.shape[:-1], dtype=torch.int64)
    launches(latents, codebook, found)
    return found


@lru_cache(maxsize=1024)
def _launches(
    latents: tuple[int, ...], codebook: tuple[int, ...], strides: tuple[int, ...], codebook_strides: tuple[int, ...],
    metric: str, plan: Plan | None, *dtypes: torch.dtype,
) -> Launches:  # fmt: skip
    """The kernels for tensors of these shapes, strides and dtypes."""
    if len(codebook) == 2:
        latents, codebook = (latents[0], 1, latents[1]), (1, *codebook)
        strides, codebook_strides = (strides[0], 0, strides[1]), (0, *codebook_strides)
    (n, groups, d), v = latents, codebook[1]
    euclidean = metric == "euclidean"
    plan = plan or Plan.choose(n * groups, v, d, metric)
    inner, depth, tiles, tiles_a_split, splits, columns, rows, id_bits = _sizes(plan, v, d, euclidean)
    slack, taken = _slack(inner, id_bits)
    padded = groups * tiles * plan.codewords
    arrays = {
        "half": (torch.float16, padded * inner),
        "exact": (torch.float32, padded * depth),
        "inverse": (torch.float64, 0 if euclidean else padded),
        "error": (torch.float32, groups * tiles),
        "longest": (torch.float64, groups * PARTS.value if euclidean else 0),
        "margin": (torch.float32, groups * n),
        "slots": (torch.int32, groups * splits * SLOTS * n * 4),
    }
    shape = {"D": d, "DEPTH": depth, "EUCLIDEAN": euclidean, "BN": plan.codewords}
    longest = Launch(
        _longest, (PARTS.value, groups), ("codebook", *codebook_strides, "longest", v),
        {"D": d, "DP": _power_of_two_from(d), "BM": max(1, 1024 // _power_of_two_from(d))},
    )  # fmt: skip
    prepare = Launch(
        _prepare, (tiles, groups), ("codebook", *codebook_strides, "longest", "half", "exact", "inverse", "error", v),
        shape
        | {"DP": _power_of_two_from(depth), "K": inner, "TERMS": plan.terms, "num_warps": 8 if inner > 32 else 4},
    )  # fmt: skip
    search = Launch(
        _search, (-(-n // plan.rows), splits, groups),
        ("latents", *strides, "longest", "half", "error", "margin", "slots", n, tiles, tiles_a_split, slack),
        {
            "D": d, "EUCLIDEAN": euclidean, "BN": plan.codewords, "DP": _power_of_two_from(d), "K": inner,
            "TERMS": plan.terms, "BM": plan.rows, "ID_BITS": id_bits, "num_warps": plan.warps,
            "num_stages": plan.stages,
        },
    )  # fmt: skip
    settle = Launch(
        _settle, (-(-n // rows), groups),
        (
            "latents", *strides, "exact", "inverse", "margin", "slots", "found", "found", "found", n, v, tiles,
            tiles_a_split, splits, taken,
        ),
        shape
        | {
            "BM": rows, "COLUMNS": columns, "ID_BITS": id_bits, "ORDERED": False, "num_stages": 1,
            "enable_fp_fusion": not euclidean,  # distances to the last bit as a CPU computes them
        },
    )  # fmt: skip
    kernels = [longest, prepare, search, settle] if euclidean else [prepare, search, settle]
    return Launches(("latents", "codebook", "found"), arrays, kernels)


def _sizes(plan: Plan, v: int, d: int, euclidean: bool) -> tuple[int, ...]:
    """What follows from a plan."""
    inner = max(16, _power_of_two_from(plan.terms * d + 3 * euclidean))
    depth = d if d < 8 else -(-d // 8) * 8
    tiles = -(-v // plan.codewords)
    tiles_a_split = -(-tiles // plan.splits)
    splits = -(-tiles // tiles_a_split)
    columns = _power_of_two_from(splits) * SLOTS * 4
    rows = max(4, min(32 if depth < 16 else 16, 2048 // columns))  # more would take registers from other blocks
    return inner, depth, tiles, tiles_a_split, splits, columns, rows, (tiles_a_split - 1).bit_length()


def _slack(inner: int, id_bits: int) -> tuple[float, float]:
    """What the measured rounding of the high parts leaves out, and the share of a score that a group's number takes.

    The first: the tensor cores' own rounding, that of the lengths, and neglected products of low parts.
    """
    return (inner // 16 + 4) * 2.0**-20, 2.0 ** (id_bits - 22)


def _power_of_two_from(n: int) -> int:
    """The least power of two that is at least n. (Triton's own functions for this are slow outside kernels.)"""
    return 1 << (n - 1).bit_length()


@triton.jit
def _power_of_two(x):
    """The largest power of two that is at most x, float64, of a float64 x > 0; 1 for 0."""
    power = (x.to(tl.int64, bitcast=True) & 0x7FF0000000000000).to(tl.float64, bitcast=True)
    return tl.where(x > 0, power, 1.0)


@triton.jit
def _rank(x):
    """An integer that grows with x, float32 or its bits, of either sign; its own inverse on the bits."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _scale(longest):
    """A power of two above the longest codeword's length, at which no codeword is longer than 1."""
    return 2.0 * _power_of_two(tl.maximum(tl.max(tl.load(longest + tl.arange(0, PARTS)), axis=0), 1e-37))


@triton.jit(do_not_specialize=["V"])
def _longest(
    codebook, stride_g, stride_v, stride_d, longest, V, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """The length of the longest of every PARTS-th block of codewords, in float64, as those of float32 overflow."""
    codebook += tl.program_id(1).to(tl.int64) * stride_g
    dims = tl.arange(0, DP)[None, :]
    largest = tl.zeros((BM,), tl.float64)
    for block in range(tl.program_id(0), (V + BM - 1) // BM, PARTS):
        v = block * BM + tl.arange(0, BM)
        place = codebook + v.to(tl.int64)[:, None] * stride_v + dims * stride_d
        c = tl.load(place, mask=(v < V)[:, None] & (dims < D), other=0.0).to(tl.float64)
        c = tl.where(c - c != 0.0, 0.0, c)
        largest = tl.maximum(largest, tl.sum(c * c, axis=1))
    tl.store(longest + tl.program_id(1) * PARTS + tl.program_id(0), tl.sqrt(tl.max(largest, axis=0)))


@triton.jit(do_not_specialize=["V"])
def _prepare(
    codebook, stride_g, stride_v, stride_d, longest, half, exact, inverse, error, V,
    D: tl.constexpr, DEPTH: tl.constexpr, EUCLIDEAN: tl.constexpr, BN: tl.constexpr, DP: tl.constexpr,
    K: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """One tile: half (V', K) permuted, exact (V' / GROUP, DEPTH, GROUP), inverse lengths (V',), error (tiles,).

    Rows beyond V repeat the last codeword, with its index, so they need no mask anywhere. The second number of a
    program is its codebook's: each has its own part of every array.
    """
    GROUP: tl.constexpr = BN // 4
    tile = tl.program_id(0)
    number, tiles = tl.program_id(1).to(tl.int64), tl.num_programs(0)
    codebook += number * stride_g
    half += number * tiles * (BN * K)
    exact += number * tiles * (BN * DEPTH)
    error += number * tiles
    if EUCLIDEAN:
        longest += number * PARTS
    else:
        inverse += number * tiles * BN
    within = tl.arange(0, BN)
    v = tile * BN + within
    source = codebook + tl.minimum(v, V - 1).to(tl.int64)[:, None] * stride_v

    dims = tl.arange(0, DP)[None, :]
    c = tl.load(source + dims * stride_d, mask=dims < D, other=0.0).to(tl.float32)
    invalid = c - c != 0.0
    c = tl.where(invalid, 0.0, c)
    if EUCLIDEAN:
        unit = tl.full((BN,), 1.0, tl.float64)
        factor = tl.zeros((BN,), tl.float64) + 1.0 / _scale(longest)
        stored = c
    else:
        unit = _power_of_two(tl.max(tl.abs(c), axis=1).to(tl.float64))
        stored = (c.to(tl.float64) / unit[:, None]).to(tl.float32)  # exact, and its length is near 1
        length = tl.sqrt(tl.sum(stored.to(tl.float64) * stored.to(tl.float64), axis=1))
        factor = tl.where(length > 0, 1.0 / tl.where(length > 0, length, 1.0), 0.0)
        tl.store(inverse + v, factor)
    group = (tile * 4 + within // GROUP).to(tl.int64)
    lane = within % GROUP
    tl.store(exact + (group * DEPTH * GROUP + lane)[:, None] + dims * GROUP, stored, mask=dims < DEPTH)

    point = (stored.to(tl.float64) * factor[:, None]).to(tl.float32)
    miss = point - point.to(tl.float16).to(tl.float32)
    worst = tl.max(tl.sqrt(tl.sum(miss * miss, axis=1)), axis=0)
    if TERMS == 3:
        worst = 0.0
    any_invalid = tl.max(tl.max(invalid.to(tl.int32), axis=1), axis=0) > 0
    tl.store(error + tile, tl.where(any_invalid, float("inf"), worst))

    parts = _codeword_parts(source, stride_d, unit, factor, stored, D, EUCLIDEAN, K, TERMS)
    position = (tile * BN + (lane // 2) * 8 + (within // GROUP) * 2 + lane % 2).to(tl.int64)
    tl.store(half + position[:, None] * K + tl.arange(0, K)[None, :], parts)


@triton.jit
def _codeword_parts(
    source, stride_d, unit, factor, stored,
    D: tl.constexpr, EUCLIDEAN: tl.constexpr, K: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """Codewords as the products need them, float16 (BN, K): high, high, low parts side by side."""
    columns = tl.arange(0, K)[None, :]
    term = columns // D
    c = tl.load(source + (columns % D) * stride_d, mask=term < TERMS, other=0.0).to(tl.float32)
    c = tl.where(c - c != 0.0, 0.0, c)
    high, low = _halves((c.to(tl.float64) / unit[:, None] * factor[:, None]).to(tl.float32))
    parts = tl.where(term == 2, low, high)
    if EUCLIDEAN:  # -|c|^2 / 2 in two parts, for the latent's factor in two parts
        shrink, wide = factor[:, None], stored.to(tl.float64)
        offset_high, offset_low = _halves(-0.5 * tl.sum(wide * shrink * wide * shrink, axis=1).to(tl.float32))
        which = columns - TERMS * D
        parts = tl.where((which == 0) | (which == 1), offset_high[:, None], parts)
        parts = tl.where(which == 2, offset_low[:, None], parts)
    return parts


@triton.jit
def _halves(x):
    """A float32 in two parts, float16 both: what is near it, and what that leaves out."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _group_maxima(s, BM: tl.constexpr, BN: tl.constexpr):
    """Largest of each group: (BM, BN) -> (BM, 4), all of a group being in one thread."""
    lanes = tl.permute(tl.reshape(s, (BM, BN // 8, 4, 2)), (0, 2, 1, 3))
    return tl.max(tl.reshape(lanes, (BM, 4, BN // 4)), axis=2)


@triton.jit
def _lengths(source, stride_d, inside, D: tl.constexpr, DP: tl.constexpr):
    """Lengths of latents, float64 (BM,), and which of them hold NaN or infinity."""
    dims = tl.arange(0, DP)[None, :]
    z = tl.load(source[:, None] + dims * stride_d, mask=inside[:, None] & (dims < D), other=0.0).to(tl.float32)
    bad = z - z != 0.0
    invalid = tl.max(bad.to(tl.int32), axis=1) > 0
    z = tl.where(bad, 0.0, z)
    largest = tl.max(tl.abs(z), axis=1).to(tl.float64)
    largest = tl.where(largest > 0, largest, 1.0)
    ratio = (z.to(tl.float64) / largest[:, None]).to(tl.float32)
    return largest * tl.sqrt(tl.sum(ratio * ratio, axis=1)).to(tl.float64), invalid


@triton.jit
def _euclidean(plain, scale):
    """For latents of these lengths: what each is divided by, what is taken off its scores, the weight of |c|^2 / 2."""
    length = tl.maximum(plain, scale)
    # Taking |z|^2 / 2 off makes a score minus half the squared distance, whose bits are worth most where it is
    # smallest. Any number would do, as all scores of a latent get the same; far from all codewords it would drown
    # them.
    shift = tl.minimum(0.5 * (plain / scale) * (plain / length), 0.5).to(tl.float32)
    return length, shift, (scale / length).to(tl.float32)


@triton.jit
def _latent_parts(
    source, stride_d, inside, length, offset,
    D: tl.constexpr, EUCLIDEAN: tl.constexpr, K: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """Latents over their lengths as the products need them, float16 (BM, K), and what the high parts leave out.

    High, low, high parts side by side, to meet the codewords' high, high, low ones.
    """
    factor = 1.0 / tl.where(length > 0, length, 1.0)
    columns = tl.arange(0, K)[None, :]
    term = columns // D
    wanted = inside[:, None] & (term < TERMS)
    z = tl.load(source[:, None] + (columns % D) * stride_d, mask=wanted, other=0.0).to(tl.float32)
    point = (tl.where(z - z != 0.0, 0.0, z).to(tl.float64) * factor[:, None]).to(tl.float32)
    high = point.to(tl.float16)
    miss = point - high.to(tl.float32)
    parts = tl.where(term == 1, miss.to(tl.float16), high)
    if EUCLIDEAN:
        offset_high, offset_low = _halves(offset)
        which = columns - TERMS * D
        parts = tl.where((which == 0) | (which == 2), offset_high[:, None], parts)
        parts = tl.where(which == 1, offset_low[:, None], parts)
    return parts, miss


@triton.jit
def _largest(values, count):
    """The largest of float32 numbers that are not negative."""
    largest = tl.zeros((256,), tl.float32)
    for start in range(0, count, 256):
        index = start + tl.arange(0, 256)
        largest = tl.maximum(largest, tl.load(values + index, mask=index < count, other=0.0))
    return tl.max(largest, axis=0)


@triton.jit
def _keep(first, second, third, fourth, packed):
    """The largest four of each row and quarter, once another is seen."""
    fourth = tl.maximum(fourth, tl.minimum(third, packed))
    third = tl.maximum(third, tl.minimum(second, packed))
    second = tl.maximum(second, tl.minimum(first, packed))
    return tl.maximum(first, packed), second, third, fourth


@triton.jit
def _store_slots(place, N, inside, first, second, third, fourth):
    """Write a split's slots, from where the first of them goes."""
    step = N.to(tl.int64) * 4
    tl.store(place, first, mask=inside[:, None])
    tl.store(place + step, second, mask=inside[:, None])
    tl.store(place + 2 * step, third, mask=inside[:, None])
    tl.store(place + 3 * step, fourth, mask=inside[:, None])


@triton.jit(do_not_specialize=["N", "tiles", "tiles_a_split"])
def _search(
    latents, stride_n, stride_g, stride_d, longest, half, error, margins, slots, N, tiles, tiles_a_split, slack,
    D: tl.constexpr, EUCLIDEAN: tl.constexpr, BN: tl.constexpr, DP: tl.constexpr, K: tl.constexpr, TERMS: tl.constexpr,
    BM: tl.constexpr, ID_BITS: tl.constexpr,
):  # fmt: skip
    """A block of latents against a split of the codebook: slots (splits, SLOTS, N, 4); margins (N,), inf if invalid,
    0 if all codewords are equally near: similarities to a zero latent.

    A slot holds a group's largest score in its high bits, the group's tile within the split in its low ID_BITS.
    """
    ID: tl.constexpr = (1 << ID_BITS) - 1
    number = tl.program_id(2).to(tl.int64)
    latents += number * stride_g
    half += number * tiles * (BN * K)
    error += number * tiles
    margins += number * N
    slots += number * tl.num_programs(1) * N * 16
    if EUCLIDEAN:
        longest += number * PARTS
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < N
    source = latents + row.to(tl.int64) * stride_n

    length, invalid = _lengths(source, stride_d, inside, D, DP)
    offset = length
    if EUCLIDEAN:
        length, shift, offset = _euclidean(length, _scale(longest))
    a, miss = _latent_parts(source, stride_d, inside, length, offset, D, EUCLIDEAN, K, TERMS)

    margin = tl.where(invalid, float("inf"), slack + 2.002 * _largest(error, tiles))
    if TERMS == 1:
        margin += 2.0 * tl.sqrt(tl.sum(miss * miss, axis=1))
    if not EUCLIDEAN:
        margin = tl.where((length == 0) & (margin < float("inf")), 0.0, margin)
        shift = 1.0 + margin  # which no score reaches
    tl.store(margins + row, margin, mask=inside & (tl.program_id(1) == 0))

    # Of positive scores the bits as an integer have the same order, and Hopper takes the largest of three at once.
    first = tl.full((BM, 4), LOWEST, tl.int32)
    second = first
    third = first
    fourth = first
    inner = tl.arange(0, K)[:, None]
    first_tile = tl.program_id(1) * tiles_a_split
    for tile in range(first_tile, tl.minimum(first_tile + tiles_a_split, tiles)):
        b = tl.load(half + (tile * BN + tl.arange(0, BN)).to(tl.int64)[None, :] * K + inner)
        s = tl.dot(a, b)
        if EUCLIDEAN:
            best = _rank(_group_maxima(s, BM, BN) - shift[:, None])
        else:
            largest_of_group = _group_maxima(s.to(tl.int32, bitcast=True), BM, BN).to(tl.float32, bitcast=True)
            # The rank of a number that is negative.
            best = (largest_of_group - shift[:, None]).to(tl.int32, bitcast=True) ^ 0x7FFFFFFF
        packed = (best & ~ID) | (tile - first_tile)
        first, second, third, fourth = _keep(first, second, third, fourth, packed)

    place = slots + (tl.program_id(1) * 4 * N.to(tl.int64) + row)[:, None] * 4 + tl.arange(0, 4)[None, :]
    _store_slots(place, N, inside, first, second, third, fourth)


@triton.jit
def _scores(
    source, stride_d, active, wanted, exact, inverse, group, lane,
    D: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, EUCLIDEAN: tl.constexpr,
):  # fmt: skip
    """Exact scores of active rows and wanted codewords: similarity times latent's length, or minus squared distance."""
    UNROLL: tl.constexpr = DEPTH if DEPTH < 8 else 8
    codeword = group * (DEPTH * GROUP) + lane
    total = (active[:, None] & wanted).to(tl.float64) * 0.0
    if not EUCLIDEAN:  # loaded here, since after the loop Triton 3.6 cannot compile it for d = 16 and a single split
        scale = tl.load(inverse + group * GROUP + lane, mask=wanted, other=0.0)
    for start in range(0, DEPTH, UNROLL):
        for step in tl.static_range(UNROLL):
            k = start + step
            c = tl.load(exact + codeword + k * GROUP, mask=wanted, other=0.0).to(tl.float64)
            z = tl.load(source + k * stride_d, mask=active & (k < D), other=0.0).to(tl.float64)[:, None]
            if EUCLIDEAN:
                total -= (z - c) * (z - c)
            else:
                total += z * c
    if not EUCLIDEAN:
        total *= scale
    return total


@triton.jit
def _better(s, index, order, V, active, best_score, best_index, ORDERED: tl.constexpr):
    """The best score so far and its lowest index, once a group's are seen. Rows beyond V stand for the last one."""
    top = tl.max(s, axis=1)
    index = tl.minimum(index, V - 1)
    if ORDERED:
        index = tl.load(order + index).to(tl.int32)
    first = tl.min(tl.where(s == top[:, None], index, 0x7FFFFFFF), axis=1)
    better = active & ((top > best_score) | ((top == best_score) & (first < best_index)))
    return tl.where(better, top, best_score), tl.where(better, first, best_index)


@triton.jit
def _score_all(
    source, stride_d, active, exact, inverse, order, split, quarter, V, tiles, tiles_a_split, best_score, best_index,
    D: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, EUCLIDEAN: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    """The best score so far and its index, once all groups of a split's quarter have been seen."""
    lane = tl.arange(0, GROUP)[None, :]
    for tile in range(split * tiles_a_split, tl.minimum((split + 1) * tiles_a_split, tiles)):
        group = tile * 4 + quarter
        s = _scores(
            source, stride_d, active, lane >= 0, exact, inverse, group.to(tl.int64), lane, D, DEPTH, GROUP, EUCLIDEAN
        )
        best_score, best_index = _better(s, group * GROUP + lane, order, V, active, best_score, best_index, ORDERED)
    return best_score, best_index


@triton.jit
def _score_crowded(
    source, stride_d, row, crowded, bound, exact, inverse, slots, order, N, V, tiles, tiles_a_split, splits,
    best_score, best_index,
    D: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, EUCLIDEAN: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    """The best score so far and its index; all that slots stand for is seen where even the last is in the margin."""
    if tl.max(crowded.to(tl.int32), axis=0) > 0:
        for run in range(splits * 4):
            last = (run // 4 * 4 + 3) * N.to(tl.int64) * 4 + row.to(tl.int64) * 4 + run % 4
            full = crowded & (tl.load(slots + last, mask=crowded, other=LOWEST) >= bound)
            if tl.max(full.to(tl.int32), axis=0) > 0:
                best_score, best_index = _score_all(
                    source, stride_d, full, exact, inverse, order, run // 4, run % 4, V, tiles, tiles_a_split,
                    best_score, best_index, D, DEPTH, GROUP, EUCLIDEAN, ORDERED,
                )  # fmt: skip
    return best_score, best_index


@triton.jit
def _bound(best, margin, taken, EUCLIDEAN: tl.constexpr):
    """The least rank of a score within the margin of the best."""
    bound = best - margin - taken * (tl.abs(best) + margin)
    if EUCLIDEAN:
        bound = _rank(bound)
    else:  # the order of integers holds for groups with a positive similarity alone
        bound = tl.where(bound > -(1.0 + margin), _rank(bound), LOWEST + 1)
    return bound


@triton.jit(do_not_specialize=["N", "V", "tiles", "tiles_a_split", "splits"])
def _settle(
    latents, stride_n, stride_g, stride_d, exact, inverse, margins, slots, latent_order, order, found,
    N, V, tiles, tiles_a_split, splits, taken,
    D: tl.constexpr, DEPTH: tl.constexpr, EUCLIDEAN: tl.constexpr, BN: tl.constexpr,
    BM: tl.constexpr, COLUMNS: tl.constexpr, ID_BITS: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    """The index of each latent of a block, from exact scores of the candidates in its slots or what those stand for.

    If ``ORDERED``, latents and codewords have been put in another order, and the orders say which they were.
    """
    GROUP: tl.constexpr = BN // 4
    ID: tl.constexpr = (1 << ID_BITS) - 1
    number = tl.program_id(1).to(tl.int64)
    latents += number * stride_g
    exact += number * tiles * (BN * DEPTH)
    margins += number * N
    slots += number * splits * N * 16
    if not EUCLIDEAN:
        inverse += number * tiles * BN
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < N
    source = latents + row.to(tl.int64) * stride_n
    margin = tl.load(margins + row, mask=inside, other=0.0)
    invalid = margin == float("inf")
    open = inside & (margin > 0) & (invalid == 0)

    column = tl.arange(0, COLUMNS)[None, :]  # split, slot, quarter
    place = slots + (column // 4) * N.to(tl.int64) * 4 + row.to(tl.int64)[:, None] * 4 + column % 4
    held = tl.load(place, mask=open[:, None] & (column < splits * 16), other=LOWEST)
    candidate = tl.max(held, axis=1)
    best = _rank(candidate & ~ID).to(tl.float32, bitcast=True)
    bound = _bound(best, margin, taken, EUCLIDEAN)

    lane = tl.arange(0, GROUP)[None, :]
    best_score = tl.full((BM,), float("-inf"), tl.float64)
    best_index = tl.zeros((BM,), tl.int32)

    crowded = open & (tl.max(tl.where((column // 4) % 4 == 3, held, LOWEST), axis=1) >= bound)
    active = open & (candidate >= bound)
    while tl.max(active.to(tl.int32), axis=0) > 0:
        at = tl.min(tl.where(held == candidate[:, None], column, COLUMNS), axis=1)
        group = (at // 16 * tiles_a_split + (candidate & ID)) * 4 + at % 4
        group = tl.where(active, group, 0)[:, None]
        s = _scores(
            source, stride_d, active, active[:, None] & (lane >= 0), exact, inverse, group.to(tl.int64), lane,
            D, DEPTH, GROUP, EUCLIDEAN,
        )  # fmt: skip
        best_score, best_index = _better(s, group * GROUP + lane, order, V, active, best_score, best_index, ORDERED)
        held = tl.where(column == at[:, None], LOWEST, held)
        candidate = tl.max(held, axis=1)
        active &= candidate >= bound

    best_score, best_index = _score_crowded(
        source, stride_d, row, crowded, bound, exact, inverse, slots, order, N, V, tiles, tiles_a_split, splits,
        best_score, best_index, D, DEPTH, GROUP, EUCLIDEAN, ORDERED,
    )  # fmt: skip

    if ORDERED:
        row = tl.load(latent_order + row, mask=inside, other=0)
    place = found + row.to(tl.int64) * tl.num_programs(1) + number
    tl.store(place, tl.where(invalid, INVALID, best_index).to(tl.int64), mask=inside)
