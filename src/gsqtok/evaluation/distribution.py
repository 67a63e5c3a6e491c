"""Figures of a set of reconstructions against a set of images, in the features of one network."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from gsqtok.distributed import on_first, rank_and_size
from gsqtok.evaluation.features import FeatureNetwork, Features
from gsqtok.evaluation.frechet import FrechetDistance, Moments, Reference
from gsqtok.evaluation.neighbours import precision_recall_density_coverage

log = logging.getLogger("gsqtok.evaluation")

_IS_SPLITS, _IS_SEED = 10, 2020  # torch-fidelity's defaults


class DistributionMetrics:
    """Fréchet distance, and with Inception v3 sFID and Inception Score, in one pass of the network over each image.

    Feed it batch by batch, on as many processes as you like; `compute` gives the same metrics on each.

    - ``rfid``: the Fréchet distance with Inception v3 and its usual weights. With anything else it is called
      ``frechet_distance_NETWORK``, and the metrics below end in the network's name, too;
    - ``sfid``: the same in spatial features (``spatial_frechet_distance_...``);
    - ``inception_score``, ``inception_score_std``: of the reconstructions (Salimans et al. 2016, arXiv 1606.03498),
      mean and standard deviation over 10 parts of the images, which torch-fidelity shuffles after sorting by key;
    - ``precision``, ``recall``, ``density``, ``coverage``, if asked for: against the originals;
    - ``pfid_SHARE@NEAREST`` (``perturbed_frechet_distance_...``), if asked for: the Fréchet distance of images whose
      tokens were perturbed (`gsqtok.evaluation.perturbation`).

    Args:
        network: where features come from.
        reference: statistics to compare with instead of the originals'.
        neighbours: compute precision, recall, density and coverage, which keep all features in memory.
        perturbed: what the name of the perturbed distance ends with; None: there is none.
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
        perturbed: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network = network
        self.device = torch.device(device)
        network.to(self.device)
        self.reference, self.neighbours = reference, neighbours
        probe = network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=self.device))
        self.frechet = FrechetDistance(network.dim).to(self.device)
        self.spatial: FrechetDistance | None = None
        if probe.spatial is not None and (reference is None or reference.spatial is not None):
            self.spatial = FrechetDistance(probe.spatial.shape[1]).to(self.device)
        self.perturbed_name = perturbed
        self.perturbed = None if perturbed is None else FrechetDistance(network.dim).to(self.device)
        if reference is not None and rank_and_size()[0] == 0:
            self.frechet.set_reference(reference.pooled)
            if self.perturbed is not None:
                self.perturbed.set_reference(reference.pooled)
            if self.spatial is not None and reference.spatial is not None:
                self.spatial.set_reference(reference.spatial)
        self._kept: dict[str, list[Tensor]] = {"logits": [], "real": [], "fake": []}
        self._keys: list[str] = []
        self.scored = probe.logits is not None

    def update(self, reconstruction: Tensor, images: Tensor, keys: list[str], perturbed: Tensor | None = None) -> None:
        """Add a batch: uint8 (B, 3, H, W) each, and the images' names."""
        if self.perturbed is not None and perturbed is not None:
            self.perturbed.update(self.network(perturbed.to(self.device)).pooled, real=False)
        fake = self.network(reconstruction.to(self.device))
        self._add(fake, real=False)
        if fake.logits is not None:
            self._kept["logits"].append(fake.logits.cpu())
        if self.reference is None or self.neighbours:
            real = self.network(images.to(self.device))
            if self.reference is None:
                self._add(real, real=True)
            if self.neighbours:
                self._kept["real"].append(real.pooled.cpu())
                self._kept["fake"].append(fake.pooled.cpu())
        self._keys += keys

    def _add(self, features: Features, real: bool) -> None:
        self.frechet.update(features.pooled, real=real)
        if self.perturbed is not None and real:
            self.perturbed.update(features.pooled, real=True)
        if self.spatial is not None and features.spatial is not None:
            self.spatial.update(features.spatial, real=real)

    def moments(self) -> tuple[Moments, Moments | None]:
        """Return statistics of the originals, pooled and spatial; every process must call it."""
        return self.frechet.moments(), None if self.spatial is None else self.spatial.moments()

    def compute(self) -> dict[str, float]:
        """Return the metrics listed above; every process must call it."""
        suffix = self.network.suffix
        names = (f"frechet_distance{suffix}", f"spatial_frechet_distance{suffix}") if suffix else ("rfid", "sfid")
        metrics = {names[0]: self.frechet.compute().item()}
        if self.spatial is not None:
            metrics[names[1]] = self.spatial.compute().item()
        if self.perturbed is not None:
            name = f"perturbed_frechet_distance{suffix}" if suffix else "pfid"
            metrics[f"{name}_{self.perturbed_name}"] = self.perturbed.compute().item()
        if self.scored or self.neighbours:
            kept = {name: torch.cat(parts) for name, parts in self._kept.items() if parts}
            more = on_first((self._keys, kept), self._of_all)
            metrics |= {f"{name}{suffix}": value for name, value in more.items()}
        return metrics

    def _of_all(self, parts: list[tuple[list[str], dict[str, Tensor]]]) -> dict[str, float]:
        """The metrics that need every image's features, in the order of the images' names."""
        keys = [key for part, _ in parts for key in part]
        order = sorted(range(len(keys)), key=keys.__getitem__)

        def gathered(name: str) -> Tensor | None:
            tensors = [kept[name] for _, kept in parts if name in kept]
            return torch.cat(tensors)[order] if tensors else None

        logits, real, fake = map(gathered, self._kept)
        metrics = {} if logits is None else _inception_score(logits)
        if real is not None and fake is not None:
            metrics |= precision_recall_density_coverage(real.to(self.device), fake.to(self.device))
        return metrics


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
