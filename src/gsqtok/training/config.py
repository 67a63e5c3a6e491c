"""The typed configuration of a training run; ``gsqtok train --help`` prints these docstrings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gsqtok.options import Count, Decay, Natural, Positive, Scale, Weight, check
from gsqtok.tokenizer import TokenizerConfig

# What may be as in the paper's own code; docs/paper.md says how each differs.
Component = Literal["losses", "augment", "discriminator", "initialization", "ema"]


@dataclass(frozen=True)
class CropConfig:
    """One of several crop sizes in a training.

    Args:
        size: crops are size x size pixels; it divides data.size.
        share: of the steps, beside the other sizes' shares.
        scales: before the crop the image is scaled down by one of these at random, of those that leave size pixels or
            more; where none does, the short side becomes size.
    """

    size: Count
    share: Positive
    scales: tuple[Scale, ...] = (1.0,)

    def __post_init__(self) -> None:
        check(self, "data.crops: ")
        if not self.scales:
            raise ValueError("data.crops: scales are empty; [1] leaves images as they are")


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and what becomes of them.

    Args:
        train: a folder of images, parquet files, tar shards or a hub name; several are joined.
        train_split: split of the training source, where it has several.
        validation: likewise, for measuring during training; without it nothing is measured.
        validation_split: split of the validation source, where it has several.
        size: images are cropped to size x size pixels.
        crop: where: random, or center, as the paper's own code does.
        max_resize: before the random crop the short side becomes a random length from size to max_resize, at most its
            own; null resizes it to size.
        crops: steps of several crop sizes, in the place of max_resize, such as [{size: 64, share: 0.1, scales: [1, 2]},
            {size: 256, share: 0.9}]; each step has as many pixels as batch_size images of data.size.
        flip: mirror half of the images.
        cache: a folder where images are kept as they are once decoded, for later runs too; null decodes them for each
            crop. Takes 3 bytes a pixel, and as much memory as is free.
        streaming: read files in their order, shuffled in a buffer, instead of converting parquet and tar first.
        workers: processes that decode images, for each rank.
    """

    train: str | list[str] = ""
    train_split: str | None = None
    validation: str | list[str] = ""
    validation_split: str | None = None
    size: Count = 256
    crop: Literal["random", "center"] = "random"
    max_resize: Count | None = None
    crops: tuple[CropConfig, ...] = ()
    flip: bool = True
    cache: str | None = None
    streaming: bool = False
    workers: Natural = 4

    def __post_init__(self) -> None:
        check(self, "data.")
        for crop in self.crops:
            if self.size % crop.size:
                raise ValueError(
                    f"data.crops: {crop.size} does not divide data.size {self.size}, so a step of such crops could not "
                    "have as many pixels as the others"
                )
        if self.crop == "center" and (self.crops or self.max_resize is not None):
            option = "crops" if self.crops else "max_resize"
            raise ValueError(f"data.crop center cuts out one square, so data.{option} has no effect: leave it out")
        if self.crops and self.max_resize is not None:
            raise ValueError(
                "data.crops takes the place of data.max_resize: say scales of each crop, and max_resize null"
            )
        if self.streaming and (self.crops or self.cache):
            option = "crops" if self.crops else "cache"
            raise ValueError(f"data.{option} reads images in any order: leave data.streaming out")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its learning rate; the defaults are the paper's VAE stage.

    Args:
        name: adamw, or muon, which turns all directions of a convolution's weights alike and leaves the other
            parameters to AdamW: far faster for the compact networks, with a learning rate of 1e-3.
        learning_rate: its peak.
        betas: AdamW's decay rates.
        eps: AdamW's epsilon.
        weight_decay: AdamW's weight decay.
        clip: the gradient's norm is clipped to this.
        warmup_steps: the learning rate rises linearly over these steps.
        schedule: constant, or cosine or linear, which fall to zero at the last step.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: Weight = 1e-4
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    eps: Weight = 1e-8
    weight_decay: Weight = 0.05
    clip: Positive = 2.0
    warmup_steps: Natural = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"

    def __post_init__(self) -> None:
        check(self, "optimizer.")


@dataclass(frozen=True)
class LossConfig:
    """The tokenizer's loss: reconstruction + perceptual + quantizer.

    Args:
        reconstruction: mean squared (l2) or absolute (l1) error, or the mean of the logarithms of the images' squared
            errors (log), which is what PSNR measures. Beside log, other terms weigh as if l2 were divided by its value.
        reconstruction_weight: its weight.
        perceptual: lpips, or timm:NAME for feature distances in that backbone, such as timm:tf_efficientnet_lite0.
        perceptual_weight: its weight; 0 leaves the term out and loads no network.
        perceptual_file: the network's weights; null looks in the offline packages, then in the hub.
        quantizer_weight: weight of the quantizer's own loss.
    """

    reconstruction: Literal["l2", "l1", "log"] = "l2"
    reconstruction_weight: Weight = 1.0
    perceptual: str = "lpips"
    perceptual_weight: Weight = 1.0
    perceptual_file: str | None = None
    quantizer_weight: Weight = 1.0

    def __post_init__(self) -> None:
        check(self, "loss.")


@dataclass(frozen=True)
class AdversarialConfig:
    """The GAN stage: a discriminator, and the adversarial term that it adds to the tokenizer's loss.

    The defaults are the paper's best, but for the discriminator itself: none is the VAE stage.

    Args:
        discriminator: none, or patch (PatchGAN), stylegan, or projected (heads on a frozen backbone).
        backbone: for projected: the frozen network of timm, such as tf_efficientnet_lite0.
        backbone_file: its weights; null looks in the offline packages, then in the hub.
        options: the discriminator's own options, such as {norm: group} for patch.
        weight: weight of the adversarial term.
        start_step: the steps before the discriminator joins.
        generator_loss: the tokenizer's adversarial term.
        discriminator_loss: the discriminator's loss.
        adaptive_weight: scale the term so that its gradient at the decoder's last layer is as long as that of the
            rest of the loss (VQGAN's; the paper finds it harmful).
        lecam: weight of the LeCAM penalty on the discriminator's logits; 0 is without.
        r1: weight of the R1 penalty on the discriminator's gradient at real images; 0 is without.
        r1_every: the R1 penalty is taken every so many steps, and weighs so many times as much.
        augment: what happens to real images and reconstructions alike before the discriminator sees them: color,
            translation, cutout.
        optimizer: the discriminator's AdamW and learning rate; its schedule begins at start_step.
    """

    discriminator: Literal["none", "patch", "stylegan", "projected"] = "none"
    backbone: str = "vit_small_patch14_reg4_dinov2"
    backbone_file: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weight: Weight = 0.1
    start_step: Natural = 0
    generator_loss: Literal["hinge", "vanilla", "non_saturating"] = "non_saturating"
    discriminator_loss: Literal["hinge", "vanilla", "non_saturating"] = "hinge"
    adaptive_weight: bool = False
    lecam: Weight = 0.0
    r1: Weight = 0.0
    r1_every: Count = 16
    augment: tuple[str, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        check(self, "adversarial.")
        if self.r1 and self.discriminator == "patch" and self.options.get("norm", "batch") == "batch":
            raise ValueError(
                "adversarial.r1 needs options {norm: group}: batch norm mixes the images in each other's gradients, "
                "and over several GPUs it cannot be differentiated twice"
            )


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Args:
        output: the run's folder: configuration, checkpoints, logs, sample grids and the tokenizer itself.
        model: the tokenizer; with initialize_from, leave it out: it is the one that is loaded.
        initialize_from: start from these weights: a saved tokenizer's folder, a run's folder, or a hub name.
        freeze: none, or encoder, which trains the decoder alone: the tokens of every image stay as they are.
        data: the images.
        optimizer: AdamW and the learning rate.
        loss: the terms of the loss.
        adversarial: the discriminator and its term of the loss.
        official: what is as in the paper's own code, where that differs: losses (how the adversarial ones are reduced,
            LeCam, R1, the adaptive weight's limit, the perceptual network's input), augment, discriminator (projected
            and stylegan), initialization (of tokenizer and patch), ema.
        steps: optimiser steps in all.
        batch_size: images of data.size a step, over all ranks and accumulated parts.
        gradient_accumulation: parts that a step's batch is split into, to save memory.
        precision: bfloat16 (autocast; the quantizer stays in float32) or float32.
        ema_decay: decay of the averaged weights, which are the ones saved and measured.
        cuda_graphs: on a GPU, launch each network's pass as one recorded graph: the host falls less behind.
        seed: of the weights, the order of images and their crops.
        log_every: steps between log lines.
        validate_every: steps between measurements on the validation source, and between sample grids.
        save_every: steps between checkpoints.
        keep_checkpoints: how many of the newest are kept.
        trackers: where the curves go: tensorboard, wandb, or another that Accelerate knows.
    """

    output: str = "runs/tokenizer"
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    initialize_from: str | None = None
    freeze: Literal["none", "encoder"] = "none"
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    official: tuple[Component, ...] = ()
    steps: Count = 100_000
    batch_size: Count = 256
    gradient_accumulation: Count = 1
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    ema_decay: Decay = 0.999
    cuda_graphs: bool = True
    seed: int = 0
    log_every: Count = 50
    validate_every: Count = 5000
    save_every: Count = 1000
    keep_checkpoints: Count = 2
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        check(self)
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of gradient_accumulation {self.gradient_accumulation}"
            )
        if self.freeze != "none" and not self.initialize_from:
            raise ValueError("freeze needs initialize_from: an encoder with random weights is not worth keeping")


# What may differ between any run and its resumption: nothing that changes the weights of the steps already taken.
RUNS_RESUMABLE = frozenset(
    {
        "output",
        "steps",
        "log_every",
        "validate_every",
        "save_every",
        "keep_checkpoints",
        "trackers",
        "data.validation",
        "data.workers",
    }
)
RESUMABLE = RUNS_RESUMABLE | {"cuda_graphs", "data.validation_split", "data.cache"}
