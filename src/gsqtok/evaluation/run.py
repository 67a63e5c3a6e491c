"""Measuring a tokenizer, or anything else that reconstructs images, under a protocol that goes on record."""

from __future__ import annotations

import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsqtok.data import ImageTransform, eval_loader, open_source
from gsqtok.evaluation.distribution import DistributionMetrics
from gsqtok.evaluation.environment import environment
from gsqtok.evaluation.features import FeatureNetwork, build_features
from gsqtok.evaluation.fingerprint import SetFingerprint
from gsqtok.evaluation.frechet import Reference
from gsqtok.evaluation.metrics import ReconstructionMetrics
from gsqtok.evaluation.perceptual import ImageDistance
from gsqtok.evaluation.processes import on_first, process_count
from gsqtok.evaluation.protocol import prepare
from gsqtok.evaluation.result import Result
from gsqtok.evaluation.similarity import to_8_bits
from gsqtok.evaluation.usage import CodebookUsage, usage_of
from gsqtok.tokenizer import ImageTokenizer


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
    precision: torch.dtype | None = None,
    tile: int | None = None,
    **options: Any,
) -> Result:
    """Reconstruct every image once and measure.

    Args:
        tokenizer: measured where its weights are, in evaluation mode.
        dataset: what ``gsqtok.data.open_source`` takes or returns.
        name: what to call the model on record.
        precision: run the tokenizer under autocast of this type; the metrics are float32 or float64 all the same.
        tile: as ``ImageTokenizer.encode`` takes it, for images too large for the device; goes on record.
        options: everything that `measure` takes by keyword, such as ``protocol="adm"``, ``features="inception"``,
            ``perceptual=("lpips_vgg",)``, ``batch_size=32``.

    Returns:
        A `Result`; as a mapping it is its metrics: psnr (dB, mean over images), psnr_pooled, ssim, ms_ssim, mse,
        usage, perplexity, entropy_bits (left out for a codebook beyond ``MAX_COUNTED``), bits_per_pixel (of the tokens
        that were made, padding to whole positions included), bits_per_pixel_entropy (if every index cost the entropy
        instead), images_per_second, encode_images_per_second and decode_images_per_second (of the tokenizer, without
        reading files), and those of ``features`` and ``perceptual``.

    Raises:
        ValueError: no image could be read, on any process; and what `measure` raises.
    """
    quantizer = tokenizer.quantizer
    weights = str(next(tokenizer.parameters()).dtype).removeprefix("torch.")
    model = {
        "name": name,
        "fingerprint": tokenizer.fingerprint(),
        "quantizer": quantizer.name,
        "factor": tokenizer.factor,
        "bits_per_position": quantizer.bits,
        "bits_per_pixel": tokenizer.bits_per_pixel,
        "precision": weights if precision is None else f"{weights}, {str(precision).removeprefix('torch.')} autocast",
        "tile": tile,
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
    }
    training = tokenizer.training
    tokenizer.eval()
    try:
        return measure(
            reconstructor(tokenizer, precision, tile),
            dataset,
            model=model,
            codebook=usage_of(quantizer),
            device=tokenizer.device,
            **options,
        )
    finally:
        tokenizer.train(training)


def reconstructor(
    tokenizer: ImageTokenizer, precision: torch.dtype | None = None, tile: int | None = None
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
            tokens = tokenizer.encode(images.to(tokenizer.input_device(tile)), tile)
            middle = now(device)
            reconstruction = tokenizer.decode(tokens, size, tile).to(images.device)
            seconds = {"encode": middle - start, "decode": now(device) - middle}
        bits = tokenizer.quantizer.bits * tokens[0, ..., 0].numel()
        return Reconstruction(reconstruction, tokens, torch.full((len(images),), bits, dtype=torch.float64), seconds)

    return reconstruct


@torch.no_grad()
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
        source: what the data are called on record; None takes ``dataset`` where it is a path.
        split: likewise; it is also what a path is opened with.
        device: where images are handed to ``reconstruct``.
        batch_size: images of equal size that share a batch.
        workers: processes that decode images.
        on_progress: called with the number of this process's images done since the last call.

    Raises:
        ValueError: no image could be read, on any process; two images of one name; a protocol and a transform at
            once; neighbours or a reference without features.
        FileNotFoundError: weights or data that are not there; the message says what to get.
        ReferenceSetError: a reference of other features.
    """
    began = time.perf_counter()
    rank, processes = process_count()
    if isinstance(dataset, (str, Path)):
        source, dataset = source or str(dataset), open_source(dataset, split=split)
    prepared, record = prepare(protocol, size, transform)

    device = torch.device(device)
    where = device if device.type == "cuda" else torch.device("cpu")  # not every other device has float64
    distances = [d if isinstance(d, ImageDistance) else ImageDistance(d, download=True) for d in perceptual]
    distribution = _distribution(features, reference, save_reference, neighbours, record, where)
    seen = _Seen(where, codebook, distances, distribution)
    loader = eval_loader(dataset, prepared, batch_size=batch_size, workers=workers, rank=rank, world_size=processes)
    for batch in loader:
        images = batch["image"].to(device)
        start = time.perf_counter()
        out = reconstruct(images)
        if out.images.is_cuda:
            torch.cuda.synchronize(out.images.device)
        seen.update(out, images, batch["keys"], time.perf_counter() - start)
        if on_progress is not None:
            on_progress(len(images) + len(batch["rejected"]))

    part = (seen.share(), len(loader.rejects), loader.rejects.summary())
    in_order = hasattr(dataset, "__len__")
    whole = on_first(part, lambda parts: _together(parts, in_order))
    metrics, counts = seen.compute(whole)
    data = {
        "source": source,
        "split": split,
        "images": len(whole["columns"]["key"]),
        "skipped": whole["skipped"],
        "fingerprint": whole["fingerprint"],
    }
    if distribution is not None and save_reference is not None:
        pooled, spatial = distribution.moments()
        if rank == 0:
            Reference(pooled, spatial, record, data).save(save_reference)
    surroundings = environment(device) | {"processes": processes, "seconds": time.perf_counter() - began}
    return Result(model, data, record, metrics, whole["columns"], counts, environment=surroundings)


class _Seen:
    """What a process gathers of the images that it measures.

    Args:
        device: where the metrics are.
        codebook: counts the tokens; None where there are none.
        distances: perceptual ones, of each pair of images.
        distribution: of the two sets.
    """

    def __init__(
        self,
        device: torch.device,
        codebook: CodebookUsage | None,
        distances: list[ImageDistance],
        distribution: DistributionMetrics | None,
    ) -> None:
        self.quality = ReconstructionMetrics(ms_ssim=True).to(device)
        self.codebook = codebook and codebook.to(device)
        self.distances, self.distribution = distances, distribution
        for distance in distances:
            distance.to(device).reset()
        self.fingerprint = SetFingerprint()
        self.columns: dict[str, list[Any]] = {"key": []}
        self.pixels, self.bits = 0, 0.0
        self.seconds: dict[str, float] = defaultdict(float)

    def update(self, out: Reconstruction, images: Tensor, keys: list[str], seconds: float) -> None:
        """Measure a batch: what came out of the images (B, 3, H, W) with these names in so many seconds."""
        of_each: dict[str, Tensor] = {}
        self.quality.update(out.images, images)
        of_each |= self.quality.last
        for distance in self.distances:
            distance.update(out.images, images)
            of_each[distance.metric] = distance.last
        if self.codebook is not None and out.tokens is not None:
            self.codebook.update(out.tokens)
        originals = to_8_bits(images)
        self.fingerprint.add(originals)
        if self.distribution is not None:
            self.distribution.update(to_8_bits(out.images), originals, keys)
        size = images.shape[2] * images.shape[3]
        self.pixels += len(images) * size
        if out.bits is not None:
            self.bits += float(out.bits.sum())
            of_each["bits_per_pixel"] = out.bits.double() / size
        self.seconds["images_per_second"] += seconds
        for part, took in out.seconds.items():
            self.seconds[f"{part}_images_per_second"] += took
        self.columns["key"] += keys
        for name, values in of_each.items():
            self.columns.setdefault(name, []).extend(values.tolist())

    def share(self) -> dict[str, Any]:
        """Return what is to be put together with the shares of other processes."""
        images = len(self.columns["key"])
        speeds = {name: images / seconds for name, seconds in self.seconds.items() if seconds}
        sums = {"fingerprint": self.fingerprint.total, "pixels": self.pixels, "bits": self.bits}
        return {"columns": self.columns, "sums": Counter(sums), "speeds": Counter(speeds)}

    def compute(self, whole: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any] | None]:
        """Return the metrics over all processes, and how the codebook was used; every process must call it."""
        with warnings.catch_warnings():  # a process without images has not been updated, and that is fine
            warnings.filterwarnings("ignore", message=".*before the ``update``", category=UserWarning)
            metrics: dict[str, float] = self.quality.compute()
            del metrics["images"]
            metrics |= {distance.metric: distance.compute() for distance in self.distances}
            if self.distribution is not None:
                metrics |= self.distribution.compute()
        counts: dict[str, Any] | None = None
        if self.codebook is not None:
            counts = dict(self.codebook.compute())
            metrics |= {name: counts.pop(name) for name in ("usage", "perplexity", "entropy_bits")}
            size, groups = self.codebook.codebook_size, self.codebook.groups
            counts |= {"counts_sorted": self.codebook.ranked_counts(), "codebook_size": size, "groups": groups}
        if "bits_per_pixel" in whole["columns"]:
            metrics["bits_per_pixel"] = whole["bits"] / whole["pixels"]
        if counts is not None:
            indices = counts["positions"] * counts["groups"]
            metrics["bits_per_pixel_entropy"] = metrics["entropy_bits"] * indices / whole["pixels"]
        return metrics | whole["speeds"], counts


def _distribution(
    features: str | FeatureNetwork | None,
    reference: str | Path | None,
    save_reference: str | Path | None,
    neighbours: bool,
    protocol: dict[str, Any],
    device: torch.device,
) -> DistributionMetrics | None:
    """The distribution metrics asked for; ``protocol`` gets what goes on record about them."""
    if features is None:
        for name, asked in (("neighbours", neighbours), ("reference", reference), ("save_reference", save_reference)):
            if asked:
                raise ValueError(f"{name} needs features, such as 'inception' or 'timm:tf_efficientnet_lite0'")
        return None
    if reference is not None and save_reference is not None:
        raise ValueError("a reference is saved from the originals: leave reference out")
    network = build_features(features) if isinstance(features, str) else features
    protocol["features"] = network.record()
    saved = None if reference is None else Reference.load(reference)
    protocol["reference"] = "originals"
    if saved is not None:
        saved.check(reference, protocol)
        protocol["reference"] = {name: saved.data.get(name) for name in ("source", "images", "fingerprint")}
        if not saved.data:
            protocol["reference"]["source"] = str(reference)
    return DistributionMetrics(network, reference=saved, neighbours=neighbours, device=device)


def _together(parts: list[tuple[dict[str, Any], int, str]], in_order: bool) -> dict[str, Any]:
    """The shares of all processes, in order."""
    shares = [share for share, _, _ in parts]
    names = {name: None for share in shares for name in share["columns"]}
    columns = {name: [value for share in shares for value in share["columns"].get(name, [])] for name in names}
    keys = columns["key"]
    if not keys:
        raise ValueError(f"no image could be read: {'; '.join(dict.fromkeys(reasons for _, _, reasons in parts))}")
    if len(set(keys)) < len(keys):
        key = Counter(keys).most_common(1)[0][0]
        raise ValueError(f"the image '{key}' came twice: keys must be unique")
    if not in_order and len(parts) > 1:  # a stream is dealt out to the processes; by name is the order that is left
        order = sorted(range(len(keys)), key=keys.__getitem__)
        columns = {name: [column[i] for i in order] for name, column in columns.items()}
    sums = sum((share["sums"] for share in shares), Counter())
    return {
        "columns": columns,
        "pixels": sums["pixels"],
        "bits": sums["bits"],
        "fingerprint": SetFingerprint().hexdigest((sums["fingerprint"],)),
        "speeds": dict(sum((share["speeds"] for share in shares), Counter())),
        "skipped": sum(skipped for _, skipped, _ in parts),
    }
