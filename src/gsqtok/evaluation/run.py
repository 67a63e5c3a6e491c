"""Measuring a tokenizer, or anything else that reconstructs images, under a protocol that goes on record."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gsqtok.data import ImageTransform, eval_loader, open_source
from gsqtok.distributed import on_first, rank_and_size
from gsqtok.evaluation.distribution import DistributionMetrics
from gsqtok.evaluation.environment import environment
from gsqtok.evaluation.features import FeatureNetwork, build_features
from gsqtok.evaluation.fingerprint import SetFingerprint
from gsqtok.evaluation.frechet import Reference
from gsqtok.evaluation.perceptual import ImageDistance
from gsqtok.evaluation.perturbation import Perturbation, Perturbed
from gsqtok.evaluation.protocol import prepare
from gsqtok.evaluation.result import Result
from gsqtok.evaluation.similarity import PEAK, PSNR_CAP, similarity, to_8_bits
from gsqtok.evaluation.usage import CodebookUsage, usage_of
from gsqtok.evaluation.vtbench import as_measured, vtbench_ssim
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokenizer.allocation import GroupAllocator, check_mean_groups, kept_bits

Bits = Callable[[Tensor, tuple[int, int]], Tensor]  # tokens (B, h, w, G), (height, width) -> (B,)
Groups = int | GroupAllocator | None  # kept of each position: so many, as many as it gives, or all


@dataclass
class Reconstruction:
    """What ``reconstruct(images)`` gives to `measure`.

    Attributes:
        images: (B, 3, H, W) in [-1, 1], the size of what came in.
        tokens: (B, h, w, G) integers, counted where `measure` is given a codebook; None without one.
        bits: (B,), what each image costs; None where that means nothing.
        seconds: what parts of it took, such as ``{"encode": 0.1, "decode": 0.2}``; the whole is timed by `measure`.
    """

    images: Tensor
    tokens: Tensor | None = None
    bits: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def evaluate(
    tokenizer: ImageTokenizer,
    dataset: Any,
    *,
    name: str = "",
    groups: Groups = None,
    precision: torch.dtype | None = None,
    tile: int | None = None,
    bits: Bits | None = None,
    pfid: str | Perturbation | None = None,
    **options: Any,
) -> Result:
    """Reconstruct every image once and measure.

    Args:
        tokenizer: measured where its weights are, in evaluation mode.
        dataset: what ``gsqtok.data.open_source`` takes or returns.
        name: what to call the model on record.
        groups: keep only so many groups of each position, which must be nested, or as many as an allocator gives it
            (``GroupAllocator.fitted`` or ``load``); goes on record.
        precision: run the tokenizer under autocast of this type; the metrics are float32 or float64 all the same.
        tile: as ``ImageTokenizer.encode`` takes it, for images too large for the device; goes on record.
        bits: what the tokens of each image cost, such as ``gsqtok.generation.compress.Compressor.bits``; None: tokens
            of a fixed length.
        pfid: ``"SHARE@NEAREST"``: also the Fréchet distance of images whose tokens are perturbed so, in the features of
            ``features``; see `gsqtok.evaluation.perturbation`.
        options: everything that `measure` takes by keyword, such as ``protocol="adm"``, ``features="inception"``,
            ``perceptual=("lpips_vgg",)``, ``batch_size=32``.

    Returns:
        A `Result`; as a mapping it is its metrics: psnr (dB, mean over images), psnr_pooled, ssim, ms_ssim, mse,
        usage, perplexity, entropy_bits (left out for a codebook beyond ``MAX_COUNTED``), bits_per_pixel (of the tokens
        that were made, padding to whole positions included, and with an allocator of the map of each image),
        bits_per_pixel_entropy (if every index cost the entropy instead; the map as it is), images_per_second,
        encode_images_per_second and decode_images_per_second (of the tokenizer, without reading files), and those of
        ``features`` and ``perceptual``.

    Raises:
        ValueError: no image could be read, on any process; groups that there are not; and what `measure` raises.
    """
    check_groups(tokenizer, groups, pfid=pfid is not None, counting=bits is not None)
    if isinstance(pfid, str):
        pfid = Perturbation.parse(pfid)
    training = tokenizer.training
    tokenizer.eval()
    try:
        return measure(
            reconstructor(tokenizer, precision, tile, groups, bits),
            dataset,
            model=describe(tokenizer, name, precision, tile, groups),
            codebook=usage_of(tokenizer.quantizer, _fixed(groups)),
            device=tokenizer.device,
            perturbed=None if pfid is None else Perturbed(tokenizer, pfid, precision=precision, tile=tile),
            **options,
        )
    finally:
        tokenizer.train(training)


def check_groups(tokenizer: ImageTokenizer, groups: Groups, *, pfid: bool = False, counting: bool = False) -> None:
    """Refuse groups that a tokenizer does not have, or beside what takes all of them.

    Args:
        tokenizer: to be measured.
        groups: as `evaluate` takes them.
        pfid: whether tokens are perturbed.
        counting: whether the bits of tokens are counted by something else.

    Raises:
        ValueError: see above.
        TypeError: no whole number, nor an allocator.
    """
    if groups is None:
        return
    if pfid:
        raise ValueError("pfid perturbs all groups: leave groups out")
    if counting:
        raise ValueError("bits of files are counted for all groups of a position: leave groups out")
    if isinstance(groups, GroupAllocator):
        check_mean_groups(tokenizer, groups.facts["mean_groups"])
    else:
        tokenizer.quantizer.tokens_of(groups)


def _fixed(groups: Groups) -> int | None:
    return None if isinstance(groups, GroupAllocator) else groups


def _mean(groups: Groups) -> float | None:
    return groups.facts["mean_groups"] if isinstance(groups, GroupAllocator) else None


def describe(
    tokenizer: ImageTokenizer,
    name: str,
    precision: torch.dtype | None = None,
    tile: int | None = None,
    groups: Groups = None,
) -> dict[str, Any]:
    """What goes on record about a tokenizer: the part ``model`` of a `Result`."""
    quantizer, mean_groups = tokenizer.quantizer, _mean(groups)
    times, kept = (1.0, _fixed(groups)) if mean_groups is None else (mean_groups, 1)
    weights = str(next(tokenizer.parameters()).dtype).removeprefix("torch.")
    return {
        "name": name,
        "fingerprint": tokenizer.fingerprint(),
        "quantizer": quantizer.name,
        "factor": tokenizer.factor,
        "groups": _fixed(groups),
        "mean_groups": mean_groups,  # a budget, and so are the bits: the metrics have what was spent
        "bits_per_position": times * quantizer.bits_of(kept),
        "bits_per_pixel": times * tokenizer.bits_per_pixel_of(kept),
        "precision": weights if precision is None else f"{weights}, {str(precision).removeprefix('torch.')} autocast",
        "tile": tile,
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
    }


def reconstructor(
    tokenizer: ImageTokenizer,
    precision: torch.dtype | None = None,
    tile: int | None = None,
    groups: Groups = None,
    bits: Bits | None = None,
) -> Callable[[Tensor], Reconstruction]:
    """A tokenizer as `measure` takes it, under autocast of ``precision`` if one is given.

    With ``tile`` feature maps are kept on the CPU; what comes out is on the device of the images all the same.
    """

    def now(device: torch.device) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def reconstruct(images: Tensor) -> Reconstruction:
        device, size = tokenizer.device, (images.shape[2], images.shape[3])
        with nullcontext() if precision is None else torch.autocast(device.type, precision):
            start = now(device)
            tokens = tokenizer.encode(images.to(tokenizer.input_device(tile)), groups=groups, tile=tile)
            middle = now(device)
            reconstruction = tokenizer.decode(tokens, size=size, tile=tile).to(images.device)
            seconds = {"encode": middle - start, "decode": now(device) - middle}
        if isinstance(groups, GroupAllocator):
            cost = kept_bits(tokenizer.quantizer, tokens)
        elif bits is None:
            fixed = tokenizer.quantizer.bits_of(_fixed(groups)) * tokens[0, ..., 0].numel()
            cost = torch.full((len(images),), fixed, dtype=torch.float64)
        else:
            cost = bits(tokens, size)
        return Reconstruction(reconstruction, tokens, cost, seconds)

    return reconstruct


@torch.no_grad()
def _timed(reconstruct: Callable[[Tensor], Reconstruction], images: Tensor) -> tuple[Reconstruction, float]:
    start = time.perf_counter()
    out = reconstruct(images)
    if out.images.is_cuda:
        torch.cuda.synchronize(out.images.device)
    return out, time.perf_counter() - start


def measure(
    reconstruct: Callable[[Tensor], Reconstruction],
    dataset: Any,
    *,
    model: dict[str, Any],
    codebook: CodebookUsage | None = None,
    protocol: str | None = None,
    size: int | None = None,
    transform: ImageTransform | None = None,
    features: str | FeatureNetwork | None = None,
    perceptual: Sequence[str | ImageDistance] = (),
    neighbours: bool = False,
    reference: str | Path | None = None,
    save_reference: str | Path | None = None,
    perturbed: Perturbed | None = None,
    source: str | None = None,
    split: str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    workers: int = 0,
    on_progress: Callable[[int], Any] | None = None,
) -> Result:
    """Measure what turns images into images: a tokenizer, an image codec, a function.

    Under torch.distributed every process calls it with the same arguments, takes its share of the images, each of
    them once, and gets the same result as one process would.

    Args:
        reconstruct: images (B, 3, H, W) in [-1, 1] on ``device`` -> `Reconstruction`. Timed.
        dataset: what ``gsqtok.data.open_source`` takes or returns.
        model: goes on record; see `gsqtok.evaluation.result`.
        codebook: counts the tokens; None where there are none.
        protocol: a name in ``gsqtok.evaluation.protocol.PROTOCOLS``; None means ``"native"``, or the transform.
        size: pixels of a side, for a named protocol that resizes; None means its own.
        transform: instead of a named protocol; goes on record as "custom".
        features: the network of the distribution metrics, ``"inception"``, ``"timm:NETWORK"`` or an object.
        perceptual: names or objects of perceptual distances: "lpips_vgg", "lpips_alex", "dists".
        neighbours: precision, recall, density and coverage, too.
        reference: statistics that ``save_reference`` wrote, to compare with instead of the originals.
        save_reference: write the originals' statistics there.
        perturbed: makes the images of the perturbed Fréchet distance of ``out.tokens``.
        source: what the data are called on record; None takes ``dataset`` where it is a path.
        split: likewise; it is also what a path is opened with.
        device: where images are handed to ``reconstruct``.
        batch_size: images of equal size that share a batch.
        workers: processes that decode images.
        on_progress: called with the number of this process's images done since the last call.

    Raises:
        ValueError: no image could be read, on any process; two images of one name; a protocol and a transform at
            once; neighbours, a reference or perturbed tokens without features.
        FileNotFoundError: weights or data that are not there; the message says what to get.
        ReferenceSetError: a reference of other features.
    """
    began = time.perf_counter()
    rank, processes = rank_and_size()
    if isinstance(dataset, (str, Path)):
        source, dataset = source or str(dataset), open_source(dataset, split=split)
    prepared: Any
    prepared, record = prepare(protocol, size, transform)
    device = torch.device(device)
    where = device if device.type == "cuda" else torch.device("cpu")  # not every other device has float64
    distances = [ImageDistance(d, download=True) if isinstance(d, str) else d for d in perceptual]
    distribution = _distribution(features, reference, save_reference, neighbours, perturbed, record, where)
    seen = _Seen(where, codebook, distances, distribution, vtbench=record["name"].startswith("vtbench"))
    loader = eval_loader(dataset, prepared, batch_size=batch_size, workers=workers, rank=rank, world_size=processes)
    for batch in loader:
        images = batch["image"].to(device)
        out, seconds = _timed(reconstruct, images)
        with_errors = None
        if perturbed is not None and out.tokens is not None:
            with_errors = perturbed(out.tokens, batch["keys"], (images.shape[2], images.shape[3]))
        seen.update(out, images, batch["keys"], seconds, with_errors)
        if on_progress is not None:
            on_progress(len(images) + len(batch["skipped"]))

    part = (*seen.part(), len(loader.skipped), loader.skipped.summary())
    whole = on_first(part, lambda parts: _together(parts, loader.in_order))
    per_image, metrics = whole["per_image"], whole["metrics"]
    if distribution is not None:
        metrics |= distribution.compute()
    counts = None if codebook is None else _codebook(codebook, metrics, whole["pixels"])
    data = {"source": source, "split": split, "images": len(per_image["key"])}
    data |= {"skipped": whole["skipped"], "fingerprint": whole["fingerprint"]}
    if distribution is not None and save_reference is not None:
        pooled, spatial = distribution.moments()
        if rank == 0:
            Reference(pooled, spatial, record, data).save(save_reference)
    surroundings = environment(device) | {"processes": processes, "seconds": time.perf_counter() - began}
    return Result(model, data, record, metrics | whole["speeds"], per_image, counts, environment=surroundings)


def _codebook(codebook: CodebookUsage, metrics: dict[str, float], pixels: int) -> dict[str, Any]:
    """How the codebook was used; ``metrics`` gets its part of it. Every process must call it."""
    counts: dict[str, Any] = codebook.compute()
    metrics |= {name: counts.pop(name) for name in ("usage", "perplexity", "entropy_bits")}
    by_token = counts["tokens"] / pixels
    metrics["bits_per_pixel_entropy"] = metrics["entropy_bits"] * by_token
    if counts["tokens"] < counts["positions"] * codebook.groups:  # a map says which: what is not of tokens is its cost
        metrics["bits_per_pixel_entropy"] += metrics["bits_per_pixel"] - math.log2(codebook.codebook_size) * by_token
    counts |= {"counts_sorted": codebook.ranked_counts(), "codebook_size": codebook.codebook_size}
    return counts | {"groups": codebook.groups}


class _Seen:
    """What a process gathers of the images that it measures.

    Args:
        device: where metrics are computed.
        codebook: counts the tokens; None where there are none.
        distances: perceptual ones, of each pair of images.
        distribution: of the two sets.
        vtbench: compare images as VTBench does.
    """

    def __init__(
        self,
        device: torch.device,
        codebook: CodebookUsage | None,
        distances: Sequence[ImageDistance],
        distribution: DistributionMetrics | None,
        vtbench: bool = False,
    ) -> None:
        self.vtbench = vtbench
        self.device, self.codebook, self.distribution = device, codebook and codebook.to(device), distribution
        self.distances = [distance.to(device) for distance in distances]
        self.fingerprint = SetFingerprint()
        self.columns: dict[str, list[Any]] = defaultdict(list)
        self.seconds: dict[str, float] = defaultdict(float)

    def update(
        self, out: Reconstruction, images: Tensor, keys: list[str], seconds: float, perturbed: Tensor | None = None
    ) -> None:
        """Measure a batch: what came out of the images (B, 3, H, W) with these names in so many seconds."""
        ours, theirs = out.images.to(self.device), images.to(self.device)
        originals = to_8_bits(theirs)
        self.fingerprint.add(originals)
        if self.vtbench:
            if perturbed is not None:
                perturbed, _ = as_measured(perturbed, images)
            ours, theirs = as_measured(ours, theirs)
            originals = to_8_bits(theirs)
        of_each = similarity(ours, theirs, ms_ssim=True)
        if self.vtbench:
            of_each["ssim_vtbench"] = vtbench_ssim(ours, theirs)
        of_each |= {distance.metric: distance(ours, theirs) for distance in self.distances}
        if out.bits is not None:
            of_each["bits"] = out.bits.double()
        for name, values in of_each.items():
            self.columns[name] += values.tolist()
        self.columns["key"] += keys
        self.columns["pixels"] += [images.shape[2] * images.shape[3]] * len(images)
        self.columns["compared"] += [ours.shape[2] * ours.shape[3]] * len(images)
        if self.codebook is not None and out.tokens is not None:
            self.codebook.update(out.tokens)
        if self.distribution is not None:
            with_errors = None if perturbed is None else to_8_bits(perturbed)
            self.distribution.update(to_8_bits(ours), originals, keys, with_errors)
        self.seconds["images_per_second"] += seconds
        for part, took in out.seconds.items():
            self.seconds[f"{part}_images_per_second"] += took

    def part(self) -> tuple[pd.DataFrame, int, dict[str, float]]:
        """Return what is to be put together with the parts of other processes."""
        keys = pd.Series(self.columns["key"], dtype=object)  # pandas' own text cannot hold every file's name
        table = pd.DataFrame({**self.columns, "key": keys})
        return table, self.fingerprint.total, {name: len(table) / took for name, took in self.seconds.items() if took}


def _together(parts: list[tuple[pd.DataFrame, int, dict[str, float], int, str]], in_order: bool) -> dict[str, Any]:
    """The images of all processes, in order, and the metrics that are means or sums over them."""
    shares, totals, speeds, skipped, reasons = zip(*parts, strict=True)
    images = pd.concat([share for share in shares if len(share)] or shares, ignore_index=True)
    if images.empty:
        raise ValueError(f"no image could be read: {'; '.join(dict.fromkeys(reasons))}")
    if images["key"].duplicated().any():
        twice = images["key"][images["key"].duplicated()].iloc[0]
        raise ValueError(f"the image '{twice}' came twice: keys must be unique")
    if not in_order and len(parts) > 1:  # a stream is dealt out to the processes; by name is the order that is left
        images = images.sort_values("key")
    errors, pixels, compared = (images.pop(name) for name in ("squared_error", "pixels", "compared"))
    bits = images.pop("bits") if "bits" in images else None
    metrics = images.drop(columns="key").mean(skipna=False).to_dict()
    mse = int(errors.sum()) / int(3 * compared.sum())
    metrics |= {"psnr_pooled": min(PSNR_CAP, 10 * math.log10(PEAK**2 / mse)) if mse else PSNR_CAP, "mse": mse}
    if bits is not None:
        metrics["bits_per_pixel"] = float(bits.sum() / pixels.sum())
        images["bits_per_pixel"] = bits / pixels
    return {
        "per_image": {"key": images.pop("key").tolist(), **images.to_dict("list")},
        "metrics": metrics,
        "pixels": int(pixels.sum()),
        "fingerprint": SetFingerprint().hexdigest(totals),
        "speeds": dict(sum(map(Counter, speeds), Counter())),
        "skipped": sum(skipped),
    }


def _distribution(
    features: str | FeatureNetwork | None,
    reference: str | Path | None,
    save_reference: str | Path | None,
    neighbours: bool,
    perturbed: Perturbed | None,
    protocol: dict[str, Any],
    device: torch.device,
) -> DistributionMetrics | None:
    """The distribution metrics asked for; ``protocol`` gets what goes on record about them."""
    if features is None:
        options = {"neighbours": neighbours, "reference": reference, "save_reference": save_reference}
        for name, asked in (options | {"pfid": perturbed}).items():
            if asked:
                raise ValueError(f"{name} needs features, such as 'inception' or 'timm:tf_efficientnet_lite0'")
        return None
    if reference is not None and save_reference is not None:
        raise ValueError("a reference is saved from the originals: leave reference out")
    network = build_features(features) if isinstance(features, str) else features
    protocol["features"] = network.record()
    protocol["reference"], saved = "originals", None
    if reference is not None:
        saved = Reference.load(reference)
        saved.check(reference, protocol)
        protocol["reference"] = {name: saved.data.get(name) for name in ("source", "images", "fingerprint")}
        if not saved.data:
            protocol["reference"]["source"] = str(reference)
    suffix = None if perturbed is None else perturbed.suffix
    return DistributionMetrics(network, reference=saved, neighbours=neighbours, perturbed=suffix, device=device)
