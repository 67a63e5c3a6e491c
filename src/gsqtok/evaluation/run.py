"""Measuring a tokenizer, or anything else that reconstructs images, under a protocol that goes on record."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
from gsqtok.evaluation.processes import on_first, own_part
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
    """

    images: Tensor
    tokens: Tensor | None = None
    bits: Tensor | None = None


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
        A `Result`; as a mapping it is its figures: psnr (dB, mean over images), psnr_pooled, ssim, ms_ssim, mse,
        usage, perplexity, entropy_bits (left out for a codebook beyond ``MAX_COUNTED``), bits_per_pixel (of the tokens
        that were made, padding to whole positions included), bits_per_pixel_entropy (if every index cost the entropy
        instead), images_per_second (of the tokenizer, decoding of files left out), and those of ``features`` and
        ``perceptual``.

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

    def reconstruct(images: Tensor) -> Reconstruction:
        with nullcontext() if precision is None else torch.autocast(tokenizer.device.type, precision):
            tokens = tokenizer.encode(images.to(tokenizer.input_device(tile)), tile)
            reconstruction = tokenizer.decode(tokens, tuple(images.shape[2:]), tile).to(images.device)
        bits = tokenizer.quantizer.bits * tokens[0, ..., 0].numel()
        return Reconstruction(reconstruction, tokens, torch.full((len(images),), bits, dtype=torch.float64))

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
    rank: int | None = None,
    world_size: int | None = None,
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
        rank: this process; None asks torch.distributed, which must agree with it.
        world_size: likewise, the number of processes.
        on_progress: called with the number of this process's images done since the last call.

    Raises:
        ValueError: no image could be read, on any process; two images of one name; a protocol and a transform at
            once; another number of processes than torch.distributed has; neighbours or a reference without features.
        FileNotFoundError: weights or data that are not there; the message says what to get.
        ReferenceSetError: a reference of other features.
    """
    began = time.perf_counter()
    rank, world_size = own_part(rank, world_size)
    if isinstance(dataset, (str, Path)):
        source, dataset = source or str(dataset), open_source(dataset, split=split)
    transform, protocol_record = prepare(protocol, size, transform)

    device = torch.device(device)
    where = device if device.type == "cuda" else torch.device("cpu")  # not every other device has float64
    quality = ReconstructionMetrics(ms_ssim=True).to(where)
    codebook = codebook and codebook.to(where)
    distances = [d if isinstance(d, ImageDistance) else ImageDistance(d, download=True) for d in perceptual]
    for distance in distances:
        distance.to(where).reset()
    distribution = _distribution(features, reference, save_reference, neighbours, protocol_record, where)

    fingerprint, seconds, pixels, bits = SetFingerprint(), 0.0, 0, []
    columns: dict[str, list[Any]] = {"key": []}
    loader = eval_loader(dataset, transform, batch_size=batch_size, workers=workers, rank=rank, world_size=world_size)
    for batch in loader:
        images = batch["image"].to(device)
        start = time.perf_counter()
        out = reconstruct(images)
        if out.images.is_cuda:
            torch.cuda.synchronize(out.images.device)
        seconds += time.perf_counter() - start
        columns["key"] += batch["keys"]
        quality.update(out.images, images)
        for name, values in quality.last.items():
            columns.setdefault(name, []).extend(values.tolist())
        for distance in distances:
            distance.update(out.images, images)
            columns.setdefault(distance.metric, []).extend(distance.last.tolist())
        if codebook is not None:
            codebook.update(out.tokens)
        originals = to_8_bits(images)
        fingerprint.add(originals)
        if distribution is not None:
            distribution.update(to_8_bits(out.images), originals, batch["keys"])
        size = images.shape[2] * images.shape[3]
        pixels += len(images) * size
        if out.bits is not None:
            bits += out.bits.tolist()
            columns.setdefault("bits_per_pixel", []).extend((out.bits.double() / size).tolist())
        if on_progress is not None:
            on_progress(len(images) + len(batch["rejected"]))

    speed = len(columns["key"]) / seconds if seconds else 0.0
    in_order = hasattr(dataset, "__len__")
    part = (columns, fingerprint.total, pixels, sum(bits), bool(bits), speed, len(loader.rejects))
    part = (*part, loader.rejects.summary())
    whole = on_first(part, lambda parts: _together(parts, in_order))
    with warnings.catch_warnings():  # a process without images has not been updated, and that is fine
        warnings.filterwarnings("ignore", message=".*before the ``update``", category=UserWarning)
        figures: dict[str, float] = quality.compute()
        images_measured = figures.pop("images")
        figures |= {distance.metric: distance.compute() for distance in distances}
        if distribution is not None:
            figures |= distribution.compute()
        codes = codebook and codebook.compute()
        ranked = codebook and codebook.ranked_counts()
    data = {"source": source, "split": split, "images": images_measured, "rejected": whole["rejected"]}
    data["fingerprint"] = whole["fingerprint"]
    if save_reference is not None:
        pooled, spatial = distribution.moments()
        if rank == 0:
            Reference(pooled, spatial, protocol_record, data).save(save_reference)
    if codes is not None:
        figures |= {name: codes.pop(name) for name in ("usage", "perplexity", "entropy_bits")}
        codes |= {"counts_sorted": ranked, "codebook_size": codebook.codebook_size, "groups": codebook.groups}
    if whole["bits"] is not None:
        figures["bits_per_pixel"] = whole["bits"] / whole["pixels"]
    if codes is not None:
        indices = codes["positions"] * codebook.groups
        figures["bits_per_pixel_entropy"] = figures["entropy_bits"] * indices / whole["pixels"]
    figures["images_per_second"] = whole["speed"]
    surroundings = environment(device) | {"processes": world_size, "seconds": time.perf_counter() - began}
    return Result(model, data, protocol_record, figures, whole["columns"], codes, environment=surroundings)


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


def _together(parts: list[Any], in_order: bool) -> dict[str, Any]:
    """The shares of all processes, in order."""
    shares, totals, pixels, bits, costed, speeds, rejected, summaries = zip(*parts, strict=True)
    names = {name: None for share in shares for name in share}
    columns = {name: [value for share in shares for value in share.get(name, [])] for name in names}
    keys = columns["key"]
    if not keys:
        raise ValueError(f"no image could be read: {'; '.join(dict.fromkeys(summaries))}")
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))
        raise ValueError(f"the image '{twice}' came twice: keys must be unique")
    if not in_order and len(parts) > 1:  # a stream is dealt out to the processes; by name is the order that is left
        order = sorted(range(len(keys)), key=keys.__getitem__)
        columns = {name: [column[i] for i in order] for name, column in columns.items()}
    return {
        "columns": columns,
        "fingerprint": SetFingerprint().hexdigest(totals),
        "pixels": sum(pixels),
        "bits": sum(bits) if any(costed) else None,
        "speed": sum(speeds),
        "rejected": sum(rejected),
    }
