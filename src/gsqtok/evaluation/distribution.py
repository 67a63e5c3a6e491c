"""Figures of a set of reconstructions against a set of images, in the features of one network."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from gsqtok.distributed import on_first, rank_and_size
from gsqtok.evaluation.features import FeatureNetwork
from gsqtok.evaluation.frechet import FrechetDistance, Moments, Reference
from gsqtok.evaluation.neighbours import precision_recall_density_coverage

log = logging.getLogger("gsqtok.evaluation")

_IS_SPLITS, _IS_SEED = 10, 2020  # torch-fidelity's defaults


class DistributionMetrics:
    """Fréchet distance, and with Inception v3 sFID and Inception Score, in one pass of the network over each image.

    Feed it batch by batch, on as many processes as you like; `compute` gives the same figures on each.

    - ``rfid``: the Fréchet distance with Inception v3 and its usual weights. With anything else it is called
      ``frechet_distance_NETWORK``, and the figures below end in the network's name, too;
    - ``sfid``: the same in spatial features (``spatial_frechet_distance_...``);
    - ``inception_score``, ``inception_score_std``: of the reconstructions (Salimans et al. 2016, arXiv 1606.03498),
      mean and standard deviation over 10 parts of the images, which torch-fidelity shuffles after sorting by key;
    - ``precision``, ``recall``, ``density``, ``coverage``, if asked for: against the originals.

    Args:
        network: where features come from.
        reference: statistics to compare with instead of the originals'.
        neighbours: compute precision, recall, density and coverage, which keep all features in memory.
        device: where sums are kept; it must have float64.

    Raises:
        ValueError: the reference is of another number of features, or has none for sFID where the network does.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        *,
        reference: Reference | None = None,
        neighbours: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network = network
        self.device = torch.device(device)
        network.to(self.device)
        self.reference, self.neighbours = reference, neighbours
        self.frechet = FrechetDistance(network.dim).to(self.device)
        self.spatial: FrechetDistance | None = None
        self.spatial_reference = reference is None or reference.spatial is not None
        if reference is not None and rank_and_size()[0] == 0:
            self.frechet.set_reference(reference.pooled)
        self._kept: dict[str, list[Tensor]] = {"logits": [], "real": [], "fake": []}
        self._keys: list[str] = []
        probe = network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=self.device))
        if probe.spatial is not None and self.spatial_reference:
            self.spatial = FrechetDistance(probe.spatial.shape[1]).to(self.device)
            if reference is not None and rank_and_size()[0] == 0:
                self.spatial.set_reference(reference.spatial)
        self.scored = probe.logits is not None

    def update(self, reconstruction: Tensor, images: Tensor, keys: list[str]) -> None:
        """Add a batch: uint8 (B, 3, H, W) each, and the images' names."""
        fake = self.network(reconstruction.to(self.device))
        self.frechet.update(fake.pooled, real=False)
        if self.spatial is not None:
            self.spatial.update(fake.spatial, real=False)
        if self.scored:
            self._kept["logits"].append(fake.logits.cpu())
        if self.reference is None or self.neighbours:
            real = self.network(images.to(self.device))
            if self.reference is None:
                self.frechet.update(real.pooled, real=True)
                if self.spatial is not None:
                    self.spatial.update(real.spatial, real=True)
            if self.neighbours:
                self._kept["real"].append(real.pooled.cpu())
                self._kept["fake"].append(fake.pooled.cpu())
        self._keys += keys

    def moments(self) -> tuple[Moments, Moments | None]:
        """Statistics of the originals, pooled and spatial; every process must call it."""
        return self.frechet.moments(), None if self.spatial is None else self.spatial.moments()

    def compute(self) -> dict[str, float]:
        """The figures listed above; every process must call it."""
        suffix = self.network.suffix
        names = (f"frechet_distance{suffix}", f"spatial_frechet_distance{suffix}") if suffix else ("rfid", "sfid")
        figures = {names[0]: self.frechet.compute().item()}
        if self.spatial is not None:
            figures[names[1]] = self.spatial.compute().item()
        kept = {name: torch.cat(parts) for name, parts in self._kept.items() if parts}
        if self.scored or self.neighbours:
            more = on_first((self._keys, kept), self._of_all)
            figures |= {f"{name}{suffix}": value for name, value in more.items()}
        return figures

    def _of_all(self, parts: list[tuple[list[str], dict[str, Tensor]]]) -> dict[str, float]:
        keys = [key for part, _ in parts for key in part]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        kept = {
            name: torch.cat([tensors[name] for _, tensors in parts if name in tensors])[order]
            for name in self._kept
            if any(name in tensors for _, tensors in parts)
        }
        figures = {}
        if "logits" in kept:
            figures |= _inception_score(kept["logits"])
        if "real" in kept:
            real, fake = (kept[name].to(self.device) for name in ("real", "fake"))
            figures |= precision_recall_density_coverage(real, fake)
        return figures


def _inception_score(logits: Tensor) -> dict[str, float]:
    from torch_fidelity.metric_isc import isc_features_to_metric

    if len(logits) < _IS_SPLITS:
        log.warning("the Inception Score needs %d images or more, got %d", _IS_SPLITS, len(logits))
        return {"inception_score": math.nan, "inception_score_std": math.nan}
    score = isc_features_to_metric(logits, splits=_IS_SPLITS, shuffle=True, rng_seed=_IS_SEED)
    return {
        "inception_score": score["inception_score_mean"],
        "inception_score_std": score["inception_score_std"],
    }
