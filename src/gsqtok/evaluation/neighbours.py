"""Precision, recall, density and coverage: which images lie among the others' nearest neighbours.

Precision and recall: Kynkäänniemi et al. 2019, arXiv 1904.06991. Density and coverage: Naeem et al. 2020,
arXiv 2002.09797, whose definitions (a ball excludes its border) are taken for all four.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import torch
from torch import Tensor

log = logging.getLogger("gsqtok.evaluation")

NEAREST = 5
_BLOCK = 1024  # rows of distances held at once


def precision_recall_density_coverage(real: Tensor, fake: Tensor, nearest: int = NEAREST) -> dict[str, float]:
    """How two sets of features lie in each other's balls; a ball reaches to a feature's k-th neighbour in its own set.

    Distances are float64, in blocks of rows.

    Args:
        real: (N, D) features of the originals.
        fake: (M, D) features of the reconstructions.
        nearest: k.

    Returns:
        ``precision`` (share of fakes in a real ball), ``recall`` (share of reals in a fake ball), ``density`` (real
        balls that a fake lies in / k, mean; may be above 1), ``coverage`` (share of real balls that hold a fake).
        nan, with a warning, where a set has no more than k images.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {tuple(real.shape)} and {tuple(fake.shape)}")
    if not (torch.isfinite(real).all() and torch.isfinite(fake).all()):
        raise ValueError("features hold values that are not finite")
    if min(len(real), len(fake)) <= nearest:
        log.warning("precision and recall need more than %d images, got %d and %d", nearest, len(real), len(fake))
        return dict.fromkeys(("precision", "recall", "density", "coverage"), math.nan)
    real, fake = real.double(), fake.double()
    real_radii, fake_radii = _radii(real, nearest), _radii(fake, nearest)
    recalled, covered = [], []
    balls = torch.zeros(len(fake), dtype=torch.int64, device=fake.device)  # real balls that each fake lies in
    for distances, radii in _blocks(real, fake, real_radii):
        inside = distances < radii[:, None]
        balls += inside.sum(dim=0)
        covered.append(inside.any(dim=1))
        recalled.append((distances < fake_radii).any(dim=1))
    return {
        "precision": (balls > 0).double().mean().item(),
        "recall": torch.cat(recalled).double().mean().item(),
        "density": balls.double().mean().item() / nearest,
        "coverage": torch.cat(covered).double().mean().item(),
    }


def _radii(features: Tensor, nearest: int) -> Tensor:
    """Distance of each to its k-th neighbour; each is the nearest to itself, at 0."""
    return torch.cat([d.kthvalue(nearest + 1, dim=1).values for d, _ in _blocks(features, features, features)])


def _blocks(rows: Tensor, columns: Tensor, beside: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for block, part in zip(rows.split(_BLOCK), beside.split(_BLOCK), strict=True):
        yield torch.cdist(block, columns, compute_mode="donot_use_mm_for_euclid_dist"), part
