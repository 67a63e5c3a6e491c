"""The Fréchet distance between two sets of images, in the features of a network, and reference sets on disk.

With Inception v3's features it is the FID (Heusel et al. 2017, arXiv 1706.08500); of reconstructions against images
the rFID; with the features of another network it is neither, and carries that network's name.
"""

from __future__ import annotations

import json
import logging
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from gsqtok.evaluation.result import differences_of
from gsqtok.io import atomic_write

log = logging.getLogger("gsqtok.evaluation")


class FrechetDistance(FrechetInceptionDistance):
    """torchmetrics' FID, fed with features instead of images.

    Sums of features and of their products are kept in float64 and added up over processes, so that any number of
    processes and any batch size give the same distance. `compute` gives a float64 scalar, at least 0, or nan with
    fewer than two images on a side.

    Args:
        dim: values D of a feature vector.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(feature=_AsTheyAre(dim))
        self.dim = dim

    def update(self, features: Tensor, real: bool) -> None:
        """Add features (B, D): of the originals (``real``), or of the reconstructions.

        Raises:
            ValueError: another shape, or values that are not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features must be (B, {self.dim}), got {tuple(features.shape)}")
        if not torch.isfinite(features).all():
            raise ValueError("features hold values that are not finite")
        super().update(features.detach().to(self.device).double(), real=real)

    def set_reference(self, reference: Moments) -> None:
        """Compare with a saved set instead of originals. In several processes, the first one alone calls it.

        Raises:
            ValueError: another number of features.
        """
        if reference.mean.shape != (self.dim,):
            raise ValueError(f"the reference has {len(reference.mean)} features, not {self.dim}")
        count = max(reference.count or 2, 2)
        mean, covariance = (torch.from_numpy(x).to(self.device) for x in (reference.mean, reference.covariance))
        self.real_features_sum = mean * count
        self.real_features_cov_sum = covariance * (count - 1) + count * torch.outer(mean, mean)
        self.real_features_num_samples = torch.tensor(count, device=self.device)

    def moments(self) -> Moments:
        """Mean and covariance of the originals, over all processes; every process must call it."""
        with self.sync_context():
            mean, covariance = self._of("real")
            return Moments(mean.cpu().numpy(), covariance.cpu().numpy(), int(self.real_features_num_samples))

    def compute(self) -> Tensor:
        """The distance."""
        counts = int(self.real_features_num_samples), int(self.fake_features_num_samples)
        if min(counts) < 2:
            log.warning("a Fréchet distance needs two images on each side, got %d and %d", *counts)
            return torch.tensor(math.nan, dtype=torch.float64)
        if min(counts) <= self.dim:
            log.warning(
                "a Fréchet distance of %d features from %d images: the covariance is not of full rank; good for "
                "comparing models on the same images, not with published values",
                *(self.dim, min(counts)),
            )
        (mean, covariance), (other_mean, other) = self._of("real"), self._of("fake")
        # The trace of (C C')^1/2 as that of (C^1/2 C' C^1/2)^1/2, which is symmetric: on a GPU the eigenvalues of the
        # product, which is not, take seconds.
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt()
        cross = torch.linalg.eigvalsh(root.T @ other @ root).clamp(min=0).sqrt().sum()
        distance = (mean - other_mean).square().sum() + covariance.trace() + other.trace() - 2 * cross
        return distance.clamp(min=0)

    def _of(self, side: str) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of a side, float64."""
        count, total, products = (
            getattr(self, f"{side}_features_{name}") for name in ("num_samples", "sum", "cov_sum")
        )
        mean = total / count
        covariance = (products - count * torch.outer(mean, mean)) / (count - 1).clamp(min=1)
        return mean, (covariance + covariance.T) / 2


class _AsTheyAre(nn.Module):
    """The network of a metric that is fed with features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, features: Tensor) -> Tensor:
        return features


@dataclass
class Moments:
    """Mean (D,) and covariance (D, D) of a set's features, float64, and how many images; None where not known."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None


class ReferenceSetError(ValueError):
    """A file of reference statistics that cannot be used; the message says why."""


@dataclass
class Reference:
    """A reference set's statistics with the protocol that they were taken under.

    The file is a numpy archive with ``mu`` and ``sigma``, as pytorch-fid and guided-diffusion write them (``mu_s`` and
    ``sigma_s`` for sFID), and ``record``, JSON: protocol and data as in a result. Files without a record are read, too.

    Attributes:
        pooled: statistics of the pooled features.
        spatial: of sFID's features; None where absent.
        protocol: what is on record; None in a file that somebody else wrote.
        data: likewise.
    """

    pooled: Moments
    spatial: Moments | None = None
    protocol: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        arrays: dict[str, Any] = {"mu": self.pooled.mean, "sigma": self.pooled.covariance}
        if self.spatial is not None:
            arrays |= {"mu_s": self.spatial.mean, "sigma_s": self.spatial.covariance}
        record = json.dumps({"protocol": self.protocol, "data": self.data, "count": self.pooled.count})
        arrays["record"] = np.array(record)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Reference:
        """Read a file.

        Raises:
            FileNotFoundError: no such file.
            ReferenceSetError: not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                record = json.loads(str(arrays["record"])) if "record" in arrays else {}
                count = record.get("count")
                pooled = _moments(arrays["mu"], arrays["sigma"], count)
                spatial = _moments(arrays["mu_s"], arrays["sigma_s"], count) if "mu_s" in arrays else None
        except (KeyError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise ReferenceSetError(f"{path} holds no reference statistics (mu, sigma): {error}") from error
        return cls(pooled, spatial, record.get("protocol"), record.get("data") or {})

    def check(self, path: str | Path, protocol: dict[str, Any]) -> None:
        """Refuse statistics of other features; warn of another protocol.

        Raises:
            ReferenceSetError: taken with another network or other weights.
        """
        if self.protocol is None:
            log.warning("%s does not say how it was made: whether its protocol is this one, nobody can tell", path)
            return
        unlike = {**self.protocol, "reference": None}, {**protocol, "reference": None}
        lines = differences_of(*unlike)
        if features := [line for line in lines if line.startswith("features")]:
            raise ReferenceSetError(f"{path} was taken with other features: {'; '.join(features)}")
        if lines:
            log.warning("%s was taken under another protocol: %s", path, "; ".join(lines))


def _moments(mean: np.ndarray, covariance: np.ndarray, count: int | None) -> Moments:
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mean {mean.shape} and covariance {covariance.shape} do not fit")
    return Moments(mean, covariance, count)
