"""Figures of a tokenizer: how close its reconstructions come, and how much of its codebook it uses.

Both classes are torchmetrics' metrics: feed them batch by batch, on as many processes as you like, and `compute` gives
the same figures as one process that saw everything. They keep their states where ``.to(device)`` puts them and bring
what they are fed there.
"""

from __future__ import annotations

import logging
import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from gsqtok.quantizers import Quantizer

log = logging.getLogger("gsqtok.evaluation")

PSNR_CAP = 100.0
"""dB. Identical pictures have an infinite PSNR; one 8-bit step in one value of a 256 px picture gives 101 dB."""

MAX_COUNTED = 2**24
"""The largest codebook whose usage ``usage_of`` counts: 64 MiB a group."""

_PEAK = 255
_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_MS_SSIM_POWERS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003, from fine to coarse


class ReconstructionMetrics(Metric):
    """PSNR, SSIM, MS-SSIM and mean squared error of reconstructions, as 8-bit pictures.

    Both sides are clamped to [-1, 1] and rounded to the 256 values of a stored picture first, so the figures are those
    of the files that a decoder would write. Squared errors are summed as integers, everything else in float64.

    `compute` gives a dict of

    - ``psnr``: mean over pictures of 10 log10(255^2 / mse) in dB, each picture's capped at ``PSNR_CAP``;
    - ``psnr_pooled``: the same from the squared error of all values together (never above ``psnr``, capped likewise);
    - ``ssim``: mean over pictures of the structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004: Gaussian window
      of 11 x 11 with sigma 1.5, k1 0.01, k2 0.03), over the positions whose window lies inside the picture and over
      the three channels. nan as soon as one picture has a side of fewer than 11 pixels: no window fits;
    - ``ms_ssim``, if asked for: mean over pictures of the multi-scale structural similarity (Wang, Simoncelli, Bovik
      2003: five scales, each half the one before; by channel, then averaged). nan as soon as one picture has a side
      of fewer than 176 pixels: no window fits the coarsest scale;
    - ``mse``: mean squared error in units of 8-bit steps, in [0, 65025];
    - ``images``: how many pictures.

    Args:
        ms_ssim: compute it, too.

    Attributes:
        last: of the latest `update`, each picture's psnr, ssim (and ms_ssim), float64 (B,).
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(self, ms_ssim: bool = False) -> None:
        super().__init__()
        self._means = ("psnr", "ssim", "ms_ssim") if ms_ssim else ("psnr", "ssim")
        self.last: dict[str, Tensor] = {}
        for name in self._means:
            self.add_state(f"{name}_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("squared_error", "values", "images"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, reconstruction: Tensor, images: Tensor) -> None:
        """Add a batch.

        Args:
            reconstruction: (B, 3, H, W) in [-1, 1]; values outside are clamped.
            images: (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: shapes that differ or are not pictures, or values that are not finite.
        """
        if reconstruction.shape != images.shape or images.ndim != 4:
            raise ValueError(
                f"reconstruction {tuple(reconstruction.shape)} and images {tuple(images.shape)} differ or are not 4-D"
            )
        if len(images) == 0:
            self.last = {name: torch.zeros(0, dtype=torch.float64) for name in self._means}
            return
        ours, theirs = (to_8_bits(x.detach().to(self.device)).long() for x in (reconstruction, images))
        squared_error = (ours - theirs).square().flatten(1).sum(dim=1)  # int64
        values = images[0].numel()
        psnr = 10 * torch.log10(_PEAK**2 * values / squared_error.double())
        # float64 keeps the window's variances from cancelling, and convolutions in it escape autocast and TF32.
        ours, theirs = ours.double(), theirs.double()
        self.last = {"psnr": psnr.clamp(max=PSNR_CAP), "ssim": _ssim(ours, theirs)}
        if "ms_ssim" in self._means:
            self.last["ms_ssim"] = _ms_ssim(ours, theirs)
        for name, values_of_pictures in self.last.items():
            setattr(self, f"{name}_sum", getattr(self, f"{name}_sum") + values_of_pictures.sum())
        self.squared_error += squared_error.sum()
        self.values += images.numel()
        self.images += len(images)

    def compute(self) -> dict[str, float | int]:
        """The figures listed above. Raises ValueError where no picture was seen."""
        images = int(self.images)
        if images == 0:
            raise ValueError("no pictures to report on: call update(reconstruction, images) first")
        mse = int(self.squared_error) / int(self.values)
        pooled = 10 * math.log10(_PEAK**2 / mse) if mse > 0 else math.inf
        means = {name: getattr(self, f"{name}_sum").item() / images for name in self._means}
        return {**means, "psnr_pooled": min(pooled, PSNR_CAP), "mse": mse, "images": images}


def to_8_bits(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1], clamped, to the uint8 values of a stored picture, rounded to nearest.

    Raises:
        ValueError: values that are not finite.
    """
    images = images.float()
    if not torch.isfinite(images).all():
        raise ValueError("pictures hold values that are not finite")
    return ((images.clamp(-1, 1) + 1) * (_PEAK / 2)).round().to(torch.uint8)


def _ssim(ours: Tensor, theirs: Tensor) -> Tensor:
    """Structural similarity of each picture, (B, C, H, W) in 8-bit steps -> (B,); nan where no window fits."""
    if min(ours.shape[-2:]) < _SSIM_WINDOW:
        return ours.new_full((len(ours),), math.nan)
    luminance, contrast = _similarities(ours, theirs)
    return (luminance * contrast).flatten(1).mean(dim=1)


def _ms_ssim(ours: Tensor, theirs: Tensor) -> Tensor:
    """Multi-scale structural similarity of each picture, (B, C, H, W) in 8-bit steps -> (B,); nan where too small."""
    scales = len(_MS_SSIM_POWERS)
    if min(ours.shape[-2:]) < _SSIM_WINDOW * 2 ** (scales - 1):
        return ours.new_full((len(ours),), math.nan)
    batch = len(ours)
    ours, theirs = (x.flatten(0, 1).unsqueeze(1) for x in (ours, theirs))  # channels as pictures of their own
    result = torch.ones(len(ours), dtype=ours.dtype, device=ours.device)
    for power in _MS_SSIM_POWERS[:-1]:
        _, contrast = _similarities(ours, theirs)
        result *= contrast.flatten(1).mean(dim=1).relu() ** power
        ours, theirs = (F.avg_pool2d(x, 2) for x in (ours, theirs))
    result *= _ssim(ours, theirs).relu() ** _MS_SSIM_POWERS[-1]
    return result.view(batch, -1).mean(dim=1)


def _similarities(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure term of SSIM wherever the window lies inside: (B, C, H - 10, W - 10) each.

    torchmetrics' function convolves with the whole window in two dimensions, which in float64 on a CPU took eight times
    as long and gigabytes: here the window's two factors go one after the other.
    """
    offsets = torch.arange(_SSIM_WINDOW, dtype=ours.dtype, device=ours.device) - _SSIM_WINDOW // 2
    window = (-(offsets**2) / (2 * _SSIM_SIGMA**2)).exp()
    window = window / window.sum()

    def local_mean(x: Tensor) -> Tensor:
        for dim in (-1, -2):
            length = x.shape[dim] - _SSIM_WINDOW + 1
            x = sum(weight * x.narrow(dim, start, length) for start, weight in enumerate(window.tolist()))
        return x

    mean_x, mean_y = local_mean(ours), local_mean(theirs)
    variances = local_mean(ours.square() + theirs.square()) - mean_x.square() - mean_y.square()
    covariance = local_mean(ours * theirs) - mean_x * mean_y
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return luminance, (2 * covariance + c2) / (variances + c2)


class CodebookUsage(Metric):
    """Which codewords are used, and how evenly.

    Counts are kept as int32, (groups, codebook_size): 256 MB for 16 groups of 4 million codewords. That leaves room for
    2^31 - 1 positions, over all processes (8 million pictures of 256 positions); `compute` refuses more.

    `compute` gives a dict of, over all groups pooled (they share the codebook in Grouped Spherical Quantization),

    - ``usage``: codewords used at least once / codebook_size, in [0, 1];
    - ``dead_codes``: codewords never used;
    - ``entropy_bits``: entropy of the codewords' frequencies, in [0, log2(codebook_size)];
    - ``perplexity``: 2 ** entropy_bits, in [1, codebook_size];
    - ``positions``: positions seen;

    and by group the lists ``usage_per_group`` and ``perplexity_per_group``. Usage can be no more than positions x
    groups / codebook_size, and an entropy counted from few positions is too low: compare at equal ``positions``.

    Args:
        codebook_size: codewords V that an index can name.
        groups: indices G per position.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, codebook_size: int, groups: int = 1) -> None:
        super().__init__()
        if codebook_size < 1 or groups < 1:
            raise ValueError(f"codebook_size and groups must be at least 1, got {codebook_size} and {groups}")
        self.codebook_size = codebook_size
        self.groups = groups
        self.add_state("counts", torch.zeros(groups, codebook_size, dtype=torch.int32), dist_reduce_fx="sum")
        self.add_state("positions", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        """Add integer indices (..., G), each in [0, codebook_size). Positions with an index of -1, which a quantizer
        gives to a latent that is not finite, do not count.

        Raises:
            TypeError: indices that are not integers.
            ValueError: another number of groups, or an index outside the codebook. On a GPU, where looking would make
                the host wait, an index beyond the codebook stops the process (CUDA's own assertion).
        """
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise TypeError(f"indices must be integers, got {indices.dtype}")
        if indices.ndim < 1 or indices.shape[-1] != self.groups:
            raise ValueError(f"indices must be (..., {self.groups}), got {tuple(indices.shape)}")
        if indices.numel() == 0:
            return
        indices = indices.detach().to(self.device).long().reshape(-1, self.groups)
        if not indices.is_cuda:
            low, high = (int(bound) for bound in indices.aminmax())
            if low < -1 or high >= self.codebook_size:
                raise ValueError(f"indices must lie in [0, {self.codebook_size}), got {low} to {high}")
        found = (indices >= 0).all(1)
        # scatter_add rather than bincount: integers add up the same in any order, and nothing of the codebook's size
        # is allocated for each batch
        ones = found.to(self.counts.dtype).expand(self.groups, len(indices))
        self.counts.scatter_add_(1, indices.clamp_min(0).T, ones)
        self.positions += found.sum()

    def ranked_counts(self, points: int = 1024) -> list[int]:
        """Counts of the codewords over all groups and processes, the largest first, at evenly spaced ranks.

        Every process must call it. The first and the last rank are always among the ``points``.
        """
        with self.sync_context():
            counts = sum(group.cpu().long() for group in self.counts).sort(descending=True).values
        if len(counts) > points:
            counts = counts[torch.linspace(0, len(counts) - 1, points, dtype=torch.float64).round().long()]
        return counts.tolist()

    def compute(self) -> dict[str, float | int | list[float]]:
        """The figures listed above.

        Raises:
            ValueError: no index was seen.
            OverflowError: more positions than the counts can hold.
        """
        positions = int(self.positions)
        if positions == 0:
            raise ValueError("no indices to report on: call update(indices) first")
        if positions > torch.iinfo(self.counts.dtype).max:
            raise OverflowError(f"{positions} positions are more than the counts can hold; measure fewer pictures")
        pooled = torch.zeros(self.codebook_size, dtype=torch.int64)
        usage, perplexity = [], []
        for counts in self.counts:  # one group at a time: float64 counts of all would take much memory
            counts = counts.cpu()  # not every device has float64
            pooled += counts
            usage.append(int((counts > 0).sum()) / self.codebook_size)
            perplexity.append(2 ** _entropy_bits(counts))
        used = int((pooled > 0).sum())
        entropy_bits = _entropy_bits(pooled)
        return {
            "usage": used / self.codebook_size,
            "dead_codes": self.codebook_size - used,
            "entropy_bits": entropy_bits,
            "perplexity": 2**entropy_bits,
            "positions": positions,
            "usage_per_group": usage,
            "perplexity_per_group": perplexity,
        }


def usage_of(quantizer: Quantizer) -> CodebookUsage | None:
    """A counter for a quantizer's tokens; None, which is logged once, for a codebook beyond ``MAX_COUNTED``."""
    if quantizer.codebook_size <= MAX_COUNTED:
        return CodebookUsage(quantizer.codebook_size, quantizer.tokens_per_position)
    _say_not_counted(quantizer.name, quantizer.codebook_size)
    return None


@cache
def _say_not_counted(name: str, codebook_size: int) -> None:
    log.warning(
        "codebook usage and perplexity are left out: the %d codewords of %s are more than the %d that are counted",
        *(codebook_size, name, MAX_COUNTED),
    )


def _entropy_bits(counts: Tensor) -> float:
    counts = counts[counts > 0].double()
    frequencies = counts / counts.sum()
    return max(0.0, -(frequencies * frequencies.log2()).sum().item())  # -0.0 for a single codeword
