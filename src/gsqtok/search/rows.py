"""Rows of a matrix as points: checks and scaling that all searches share."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

METRICS = ("cosine", "euclidean")
TINY = torch.finfo(torch.float64).tiny
SHORT = 1e-12  # rows whose largest entry is at most this get no gradient


def normalize(rows: Tensor, *, order: float = 2.0) -> Tensor:
    """Scale rows (..., d) to length 1 without overflow or underflow, which `F.normalize` suffers from.

    Every row that is finite and not zero gets length 1, also where its squares leave the range of its dtype. A zero row
    stays zero. Rows without an entry above 1e-12 get no gradient: it grows with 1 / length, and would drown that of all
    other rows.

    Args:
        rows: (..., d), any floating dtype.
        order: the norm, 2 for the Euclidean length, 1 for the sum of absolute values.

    Returns:
        The same shape and dtype.
    """
    tiny = torch.finfo(rows.dtype).tiny
    largest = rows.detach().abs().amax(dim=-1, keepdim=True)
    scaled = torch.where(largest > SHORT, rows, rows.detach()) / largest.clamp_min(tiny)
    return F.normalize(scaled, p=order, dim=-1, eps=tiny)


def check(latents: Tensor, codebook: Tensor, metric: str, k: int) -> None:
    """Raise a clear error for arguments that no search can take; looks at no value, so it costs no device work."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
    groups = codebook.ndim == 3 and latents.ndim == 3
    for name, rows in (("latents", latents), ("codebook", codebook)):
        if rows.ndim != 2 and not groups:
            raise ValueError(
                f"{name} must have two dimensions (rows, d), or both three, (N, G, d) and (G, V, d); got shape "
                f"{tuple(rows.shape)}"
            )
        if not rows.is_floating_point():
            raise TypeError(f"{name} must hold floating-point numbers; got {rows.dtype}")
    if latents.device != codebook.device:
        raise ValueError(f"latents are on {latents.device} but codebook is on {codebook.device}; move one of them")
    if latents.shape[1:-1] != codebook.shape[:-2]:
        raise ValueError(
            f"latents of {latents.shape[1]} groups need as many codebooks; got {codebook.shape[0]} of shape (G, V, d)"
        )
    if latents.shape[-1] != codebook.shape[-1] or latents.shape[-1] == 0:
        raise ValueError(
            f"latents and codebook must have the same d of at least 1; got {latents.shape[-1]} and {codebook.shape[-1]}"
        )
    codewords = codebook.shape[-2]
    if codewords == 0:
        raise ValueError("codebook is empty: there is no codeword to choose")
    if not 1 <= k <= codewords:
        raise ValueError(f"k must be from 1 to the {codewords} codewords; got {k}")


def finite(rows: Tensor) -> Tensor:
    """Which rows (..., d) hold neither NaN nor infinity: bool (...)."""
    return torch.isfinite(rows).all(dim=-1)


def require_finite(name: str, rows: Tensor) -> None:
    """Raise ValueError, naming how many rows (..., d) hold NaN or infinity and the first of them, if any does."""
    if math.isfinite(rows.sum().item()):  # NaN and infinity are passed on
        return
    bad = (~finite(rows.reshape(-1, rows.shape[-1]))).nonzero().flatten()
    if len(bad) == 0:  # the sum has overflowed
        return
    raise ValueError(
        f"{name}: {len(bad)} of {rows.shape[:-1].numel()} rows hold NaN or infinity, the first is row {bad[0].item()}; "
        "they have no nearest codeword"
    )


def unit(rows: Tensor) -> Tensor:
    """Rows (N, d) scaled to length 1, float64; a zero row stays zero."""
    wide = rows.detach().double()
    scaled = wide / wide.abs().amax(dim=-1, keepdim=True).clamp_min(TINY)
    length: Tensor = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / length.clamp_min(TINY)
