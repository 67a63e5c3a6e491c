"""Settings of all methods that spend the same bits, with what they cost and what error to expect.

The paper compares quantizers at equal vocabulary, which is not at equal bits; ``plan`` starts from the bits.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gsqtok.quantizers.fsq import choose_levels
from gsqtok.quantizers.leech import KISSING_NUMBER
from gsqtok.quantizers.registry import list_quantizers
from gsqtok.quantizers.sphere import bsq_error, random_code_error, residual_stages, sphere_bound

CODEBOOK_BITS = (10, 12, 13, 14, 16, 18)  # 1,024 to 262,144 codewords
GROUP_DIMS = (2, 4, 8, 16, 32)
MAX_DIM = 256  # channels of a latent beyond which a convolutional decoder gains nothing
LEECH_ERROR = 0.4447  # measured on uniform points; tests/quantizers/test_planning.py repeats it


@dataclass(frozen=True)
class Setting:
    """One way to spend the bits.

    Attributes:
        method: name in the registry of quantizers.
        dim: channels D of the latent.
        groups: groups G, each with a token (or one a stage).
        codebook_size: values V that one token can take.
        stages: residual stages; 1 for other methods.
        bits: per position, groups * stages * log2(V).
        bits_per_pixel: bits / factor^2.
        codebook_parameters: numbers stored for the codebook, trained or fixed.
        search_cost: operations to find the tokens of one position: multiply-adds of comparing with all codewords,
            comparisons of a binary search for groups of 2 channels, or one a channel where nothing is searched.
        expected_error: mean spherical error between a uniform point on the unit sphere of a group and its value,
            before any training; None off the sphere (fsq, lfq).
        error_bound: what no code of that many points in that dimension can beat; None off the sphere.
        options: what ``build_quantizer(method, **options)`` takes.
    """

    method: str
    dim: int
    groups: int
    codebook_size: int
    stages: int
    bits: float
    bits_per_pixel: float
    codebook_parameters: int
    search_cost: int
    expected_error: float | None
    error_bound: float | None
    options: dict[str, Any] = field(repr=False)

    @property
    def group_dim(self) -> int:
        """Channels d of one group."""
        return self.dim // self.groups


def plan(bits_per_pixel: float, *, factor: int, methods: str = "*", tolerance: float = 0.02) -> list[Setting]:
    """Settings that spend ``bits_per_pixel`` at a down-sampling factor, ordered by method and expected error.

    Args:
        bits_per_pixel: bits of the tokens per image pixel, e.g. 0.28.
        factor: down-sampling factor f of the encoder; a position covers f x f pixels.
        methods: shell pattern of methods; of the ones that spend bits alike, ``vq`` and ``ema_vq`` as ``gsq``, and
            ``rvq`` as ``rsq``, "*" lists only GSQ's kind.
        tolerance: relative difference from the bits asked for that is still listed.

    Raises:
        ValueError: a value out of its range, no such method, or no setting within the tolerance.
    """
    if not 0 < bits_per_pixel <= 24:
        raise ValueError(
            f"bits_per_pixel must be above 0 and at most 24, an uncompressed image's, got {bits_per_pixel}"
        )
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be from 0 to 1, got {tolerance}")
    position_bits = bits_per_pixel * factor**2
    kinds = {"gsq": _codebooks, "fsq": _grids, "lfq": _signs, "bsq": _corners, "rsq": _residuals, "leech": _leech}
    if methods != "*":
        kinds |= {"vq": _codebooks, "ema_vq": _codebooks, "rvq": _residuals}
    chosen = fnmatch.filter(kinds, methods)
    if not chosen:
        raise ValueError(f"no method to plan for matches '{methods}'; known: {', '.join(sorted(kinds))}")
    assert set(chosen) <= set(list_quantizers())
    settings = [
        _setting(method, factor, **described) for method in sorted(chosen) for described in kinds[method](position_bits)
    ]
    near = [s for s in settings if abs(s.bits - position_bits) <= tolerance * position_bits + 1e-9]
    if not near:
        closest = min((s.bits / factor**2 for s in settings), key=lambda b: abs(b - bits_per_pixel), default=None)
        hint = "" if closest is None else f"; the nearest has {closest:.4g} bits per pixel"
        raise ValueError(
            f"no setting of {', '.join(chosen)} is within {tolerance:.0%} of {bits_per_pixel:g} bits per pixel "
            f"({position_bits:g} bits a position) at factor {factor}{hint}; raise tolerance"
        )
    return sorted(near, key=lambda s: (s.method, s.expected_error or 0.0, abs(s.bits - position_bits)))


def _setting(
    method: str, factor: int, *, groups: int, group_dim: int, size: int, options: dict[str, Any], **costs: Any
) -> Setting:
    dim, stages = groups * group_dim, options.get("stages", 1)
    bits = groups * stages * math.log2(size)
    return Setting(
        method=method,
        dim=dim,
        groups=groups,
        codebook_size=size,
        stages=stages,
        bits=bits,
        bits_per_pixel=bits / factor**2,
        options={"dim": dim, "groups": groups} | options,
        **costs,
    )


def _codebooks(position_bits: float) -> Iterator[dict[str, Any]]:
    """One learnt codebook for all groups."""
    for size in (2**bits for bits in CODEBOOK_BITS):
        groups = max(1, round(position_bits / math.log2(size)))
        for d in GROUP_DIMS:
            if groups * d <= MAX_DIM:
                yield {
                    "groups": groups,
                    "group_dim": d,
                    "size": size,
                    "options": {"codebook_size": size},
                    "codebook_parameters": size * d,
                    "search_cost": groups * (math.ceil(math.log2(size)) if d == 2 else size * d),
                    "expected_error": random_code_error(d, size),
                    "error_bound": sphere_bound(d, size),
                }


def _residuals(position_bits: float) -> Iterator[dict[str, Any]]:
    """A learnt codebook a stage; groups where one would need too many stages."""
    for groups in (1, 2, 4):
        for size in (2**bits for bits in CODEBOOK_BITS):
            stages = round(position_bits / groups / math.log2(size))
            for d in GROUP_DIMS:
                if 2 <= stages <= 16 and d >= 8 and groups * d <= MAX_DIM:
                    yield {
                        "groups": groups,
                        "group_dim": d,
                        "size": size,
                        "options": {"codebook_size": size, "stages": stages},
                        "codebook_parameters": stages * size * d,
                        "search_cost": groups * stages * size * d,
                        "expected_error": residual_stages(d, size, stages)[-1][1],
                        "error_bound": sphere_bound(d, size**stages),
                    }


def _signs(position_bits: float) -> Iterator[dict[str, Any]]:
    """A bit a channel, in as few tokens as indices can hold."""
    bits = max(1, round(position_bits))
    fewest = next(g for g in range(1, bits + 1) if bits % g == 0 and bits // g <= 62)
    for groups in [fewest, *(g for g in (2, 4) if g > fewest and bits % g == 0)]:
        d = bits // groups
        yield {
            "groups": groups,
            "group_dim": d,
            "size": 2**d,
            "options": {},
            "codebook_parameters": 0,
            "search_cost": bits,
            "expected_error": None,
            "error_bound": None,
        }


def _corners(position_bits: float) -> Iterator[dict[str, Any]]:
    """The same on spheres."""
    for signs in _signs(position_bits):
        d = signs["group_dim"]
        if d > 1:
            yield signs | {"expected_error": bsq_error(d), "error_bound": sphere_bound(d, 2**d)}


def _grids(position_bits: float) -> Iterator[dict[str, Any]]:
    """FSQ's levels; the paper advises 5 or more a channel, so 3 to 8 channels for a token of 8 to 18 bits."""
    for groups in range(1, max(1, round(position_bits / 8)) + 1):
        token_bits = position_bits / groups
        for d in range(max(1, round(token_bits / 3)), max(1, math.floor(token_bits / math.log2(5))) + 1):
            if 8 <= token_bits <= 62:
                levels = choose_levels(token_bits, d)
                yield {
                    "groups": groups,
                    "group_dim": d,
                    "size": math.prod(levels),
                    "options": {"levels": levels},
                    "codebook_parameters": 0,
                    "search_cost": groups * d,
                    "expected_error": None,
                    "error_bound": None,
                }


def _leech(position_bits: float) -> Iterator[dict[str, Any]]:
    groups = max(1, round(position_bits / math.log2(KISSING_NUMBER)))
    yield {
        "groups": groups,
        "group_dim": 24,
        "size": KISSING_NUMBER,
        "options": {},
        "codebook_parameters": KISSING_NUMBER * 24,
        "search_cost": groups * KISSING_NUMBER * 24,
        "expected_error": LEECH_ERROR,
        "error_bound": sphere_bound(24, KISSING_NUMBER),
    }
