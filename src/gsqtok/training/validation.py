"""What a configuration would train, how much memory that takes, and what is wrong with it, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gsqtok.io import one_line
from gsqtok.losses import PerceptualDistance
from gsqtok.networks.backbone import random_backbone, random_trunk
from gsqtok.quantizers.ibq import IBQ
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.training.adversarial import DiscriminatorObjective
from gsqtok.training.config import TrainConfig
from gsqtok.training.images import fixed_images, training_images, validation_images
from gsqtok.training.initial import initial_tokenizer
from gsqtok.training.logs import checked_trackers
from gsqtok.training.objective import Objective
from gsqtok.training.run_folder import RunFolder

GIB = 2**30
_Made = TypeVar("_Made")


@dataclass
class Report:
    """What ``validate`` found.

    Attributes:
        facts: what the run is made of, by name.
        problems: one line for each thing that would stop it.
    """

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def attempt(self, make: Callable[[], _Made], where: str = "") -> _Made | None:
        """What ``make`` makes; None, and one more problem, if it fails."""
        try:
            return make()
        except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
            self.problems.append(f"{where}{one_line(error)}")
            return None


def validate(config: TrainConfig, resume: bool = False) -> Report:
    """Build everything that a run needs on the CPU, try its data, and add up its memory; trains nothing.

    Without ``data.train`` the data are not checked.
    """
    report = Report()
    facts = report.facts
    report.attempt(lambda: checked_trackers(config.trackers))
    report.attempt(lambda: RunFolder(config.output).check(config, resume))
    _check_data(config, report)

    tokenizer = report.attempt(lambda: initial_tokenizer(config))
    objective = report.attempt(lambda: Objective(config.loss))
    # without their weights, pretrained networks are counted all the same
    perceptual = _random_perceptual(config) if objective is None else objective.perceptual
    discriminator = None
    if config.adversarial.discriminator != "none":
        discriminator = report.attempt(lambda: DiscriminatorObjective(config.adversarial, components=config.official))
        if discriminator is None:
            discriminator = _with_random_backbone(config)
    if tokenizer is None:
        return report

    bits = tokenizer.quantizer.bits
    side, _ = tokenizer.grid(config.data.size, config.data.size)
    facts["tokens"] = (
        f"{config.data.size} px, f{tokenizer.factor}: {side} x {side} x {tokenizer.quantizer.tokens_per_position} of "
        f"{tokenizer.quantizer.codebook_size:,} codewords; {bits:g} bits a position, "
        f"{tokenizer.bits_per_pixel:.4g} bits/px"
    )
    parts = {name: _millions(getattr(tokenizer, name)) for name in ("encoder", "quantizer", "decoder")}
    facts["tokenizer"] = f"{_millions(tokenizer)} parameters: " + ", ".join(f"{n} {m}" for n, m in parts.items())
    if discriminator is not None:
        facts["discriminator"] = f"{config.adversarial.discriminator}, {_millions(discriminator)} trained parameters"
    facts["batch"] = _batch(config, report)
    _add_memory(config, report, tokenizer, perceptual, discriminator)
    return report


def _check_data(config: TrainConfig, report: Report) -> None:
    if not config.data.train:
        report.facts["images"] = "not checked: no --data.train"
        return
    opened = report.attempt(lambda: training_images(config.data), "data.train: ")
    if opened is not None:
        images, _ = opened
        if report.attempt(lambda: fixed_images(config.data, images), "data.train: ") is not None:
            report.facts["images"] = f"{len(images):,}" if hasattr(images, "__len__") else "streamed"
    if config.data.validation:
        held_out = report.attempt(lambda: validation_images(config.data), "data.validation: ")
        if held_out is not None:
            report.attempt(lambda: fixed_images(config.data, held_out), "data.validation: ")


def _batch(config: TrainConfig, report: Report) -> str:
    ranks = int(os.environ.get("WORLD_SIZE", 0)) or max(1, torch.cuda.device_count())
    part = config.batch_size // config.gradient_accumulation
    fitting = [n for n in (1, 2, 4, 8, 16, 32, 64) if part % n == 0]
    if part % ranks:
        report.problems.append(
            f"batch_size {config.batch_size} is no multiple of gradient_accumulation "
            f"{config.gradient_accumulation} times {ranks} ranks"
        )
    accumulated = f" in {config.gradient_accumulation} parts" if config.gradient_accumulation > 1 else ""
    return f"{config.batch_size}{accumulated}; divides over {', '.join(map(str, fitting))} ranks"


def _random_perceptual(config: TrainConfig) -> PerceptualDistance | None:
    name = config.loss.perceptual.removeprefix("timm:")
    try:
        if name == "lpips":
            return PerceptualDistance(random_trunk("vgg16"))
        return PerceptualDistance(random_backbone(name))
    except (ValueError, RuntimeError):
        return None


def _with_random_backbone(config: TrainConfig) -> DiscriminatorObjective | None:
    if config.adversarial.discriminator != "projected":
        return None
    try:
        backbone = random_backbone(
            config.adversarial.backbone, embedding=True, official="discriminator" in config.official
        )
        options = {name: value for name, value in config.adversarial.options.items() if name != "out_indices"}
        return DiscriminatorObjective(replace(config.adversarial, options=options), backbone, config.official)
    except (ValueError, TypeError, RuntimeError):
        return None  # the problem is listed already


# Memory


def _add_memory(
    config: TrainConfig,
    report: Report,
    tokenizer: ImageTokenizer,
    perceptual: PerceptualDistance | None,
    discriminator: DiscriminatorObjective | None,
) -> None:
    """Weights and optimiser are exact; activations are the tensors that autograd keeps, whose sizes a step without
    arithmetic tells (torch's fake tensors).

    Not counted: what a layer needs while it runs, cuDNN's workspace, CUDA itself, the search for the nearest codewords,
    and the second graph of an R1 penalty. A GPU's autocast keeps more in float32 (normalisations) than a CPU's.
    """
    of_tokenizer, constant = _state_bytes(tokenizer, average=True), 0
    if discriminator is not None:
        constant += _state_bytes(discriminator, average=False)
    for frozen in (perceptual, discriminator and discriminator.discriminator):
        if (backbone := getattr(frozen, "backbone", None)) is not None:
            constant += sum(p.numel() * p.element_size() for p in backbone.network.parameters())

    def kept() -> list[int]:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return [_activation_bytes(config, batch, tokenizer, perceptual, discriminator) for batch in (8, 16)]

    counted = report.attempt(kept, f"a step at {config.data.size} px: ")
    if counted is None:
        return
    a_image = (counted[1] - counted[0]) / 8
    constant += max(0, 2 * counted[0] - counted[1])
    per_rank = config.batch_size // config.gradient_accumulation
    counts = [ranks for ranks in (1, 4, 8) if per_rank % ranks == 0]
    softmax = {n: _softmax_bytes(config, tokenizer, per_rank // n) for n in counts}
    totals = {n: of_tokenizer + constant + per_rank // n * a_image + softmax[n] for n in counts}
    of_softmax = f", with {max(softmax.values()) / GIB:.2f} GiB for ibq's softmax" if any(softmax.values()) else ""
    report.facts["GPU memory"] = (
        f"{(of_tokenizer + constant) / GIB:.2f} GiB (weights, gradients, AdamW, EMA, frozen networks) + "
        f"{a_image / GIB:.3f} GiB an image; "
        + ", ".join(
            f"{total / GIB:.1f} GiB on " + (f"each of {n} GPUs" if n > 1 else "one GPU") for n, total in totals.items()
        )
        + f"{of_softmax}; estimated from what autograd keeps, without the layers' scratch memory"
    )


def _softmax_bytes(config: TrainConfig, tokenizer: ImageTokenizer, images: int) -> int:
    """What IBQ's softmax over the codebook takes besides, for so many images."""
    if not isinstance(quantizer := tokenizer.quantizer, IBQ):
        return 0
    positions = images * (config.data.size // (tokenizer.factor or config.data.size)) ** 2
    return quantizer.working_memory(positions * quantizer.groups)


def _state_bytes(network: nn.Module, average: bool) -> int:
    """Weights and buffers, gradients and AdamW's two moments of what is trained, and the average's copy."""
    total = 0
    for value in (*network.parameters(), *network.buffers()):
        size = value.numel() * value.element_size()
        total += size * (1 + average) + (3 * size if value.requires_grad else 0)
    return total


def _activation_bytes(
    config: TrainConfig,
    batch: int,
    tokenizer: ImageTokenizer,
    perceptual: PerceptualDistance | None,
    discriminator: DiscriminatorObjective | None,
) -> int:
    """Bytes that autograd keeps at once in a step: the larger of the tokenizer's graph and the discriminator's.

    The quantizer is left out: its part is small, and its search on a CPU is not that on a GPU.
    """
    size = config.data.size
    images = torch.zeros(batch, 3, size, size)
    precision = torch.autocast("cpu", torch.bfloat16) if config.precision == "bfloat16" else nullcontext()
    with precision:
        with _kept_bytes() as first:
            latent = tokenizer.encoder(images)
            reconstruction = tokenizer.decode_latent(latent.float()).float()[..., :size, :size]
            loss = reconstruction.sum()
            if perceptual is not None:
                loss = loss + perceptual(reconstruction, images)
            if discriminator is not None:
                judged = discriminator.discriminator(reconstruction)
                loss = loss + discriminator.losses.generator_loss(judged, config.adversarial.generator_loss)
        second: dict[int, int] = {}
        if discriminator is not None:
            fake = reconstruction.detach()
            del loss, judged, reconstruction, latent
            with _kept_bytes() as second:
                discriminator(images, fake, False)
    return max(sum(first.values()), sum(second.values()))


@contextmanager
def _kept_bytes() -> Iterator[dict[int, int]]:
    """Bytes of each memory block that autograd keeps inside, without weights."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not (tensor.is_leaf and tensor.requires_grad):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _millions(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f}M"
