"""The scales at which a study can be run: what is held."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from gsqtok.quantizers import quantizer_options
from gsqtok.tokenizer.config import TokenizerConfig
from gsqtok.training.config import AdversarialConfig, CropConfig, DataConfig, LossConfig, OptimizerConfig, TrainConfig


@dataclass(frozen=True)
class Scale:
    """What all runs of a study hold.

    Attributes:
        name: smoke, small, compact, compact-256, medium or paper.
        summary: in a line.
        config: the training of a run; each study changes what it varies.
        ablations: the same for the studies that the paper makes at 128 px (codebook, discriminator); None: no other.
        adversarial: the discriminator's part of the ablations, whose networks a study may change.
        multipliers: the channel multipliers of each down-sampling factor.
        features: network of the Fréchet distance.
        perceptual: further distances.
    """

    name: str
    summary: str
    config: TrainConfig
    adversarial: AdversarialConfig
    multipliers: dict[int, tuple[int, ...]]
    ablations: TrainConfig | None = None
    features: str | None = None
    perceptual: tuple[str, ...] = ()

    @property
    def settings(self) -> str:
        """The scale whose settings (V, G, ...) the studies take: smoke and paper have their own."""
        return self.name if self.name in ("smoke", "paper") else "small"

    def gsq(self, groups: int, group_dim: int, codebook_size: int, **changes: Any) -> TrainConfig:
        """The run with this GSQ quantizer; see ``train``. ``options`` are further ones of the quantizer."""
        options = changes.pop("options", {})
        quantizer = {"name": "gsq", "groups": groups, "codebook_size": codebook_size} | options
        return self.train(groups * group_dim, quantizer, **changes)

    def train(
        self, latent_dim: int, quantizer: dict[str, Any], factor: int = 8, ablation: bool = False, **changes: Any
    ) -> TrainConfig:
        """The run with this quantizer, latent and down-sampling factor; ``changes`` are fields of the configuration."""
        base = self.ablations if ablation and self.ablations else self.config
        model = replace(
            base.model,
            latent_dim=latent_dim,
            quantizer=quantizer_options(**quantizer),
            multipliers=self.multipliers[self.factor(factor)],
        )
        return replace(base, model=model, **changes)

    def factor(self, factor: int) -> int:
        """The down-sampling factor that stands for ``factor`` at this scale."""
        return factor // 2 if self.name == "smoke" else factor  # 32 px leave f64 nothing


_SMOKE = TrainConfig(
    model=TokenizerConfig(
        channels=32,
        encoder_blocks=0,
        decoder_blocks=0,
        encoder_middle_blocks=1,
        decoder_middle_blocks=1,
    ),
    data=DataConfig(size=32, workers=0),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    loss=LossConfig(perceptual_weight=0.0),
    steps=3,
    batch_size=4,
    precision="float32",
    ema_decay=0.5,
    log_every=1,
    keep_checkpoints=1,
    trackers=(),
)
_SMALL = TrainConfig(
    model=TokenizerConfig(
        channels=64,
        encoder_blocks=1,
        decoder_blocks=1,
        encoder_middle_blocks=1,
        decoder_middle_blocks=1,
    ),
    data=DataConfig(size=64, workers=4),
    optimizer=OptimizerConfig(learning_rate=8e-4, warmup_steps=100, weight_decay=0.01, schedule="cosine"),
    loss=LossConfig(perceptual="timm:tf_efficientnet_lite0", perceptual_weight=0.05),
    steps=1000,
    batch_size=128,
    ema_decay=0.99,
    log_every=100,
    validate_every=10**9,
    save_every=1000,
    keep_checkpoints=1,
    trackers=(),
)
_LITE1 = "timm:tf_efficientnet_lite1"
_MEDIUM = TrainConfig(
    model=TokenizerConfig(
        network="compact",
        channels=32,
        encoder_blocks=2,
        decoder_blocks=2,
        encoder_middle_blocks=0,
        decoder_middle_blocks=0,
    ),
    data=DataConfig(size=256, crops=(CropConfig(256, 1.0, (1.0,)),), workers=4),  # crops alone: no core resizes
    optimizer=OptimizerConfig(
        name="muon", learning_rate=1e-3, eps=1e-9, weight_decay=0.0, clip=100.0, warmup_steps=50, schedule="linear"
    ),
    # beside the log, whose gradient is l2's divided by its value, other terms need larger weights than beside l2; the
    # perceptual term's gradient at the reconstruction is as long as the log's at 22 dB, a sixth of it at 32 dB
    loss=LossConfig(
        reconstruction="log", perceptual="timm:tf_efficientnet_lite0", perceptual_weight=0.1, quantizer_weight=16.0
    ),
    steps=5000,
    batch_size=32,
    ema_decay=0.99,
    validate_every=10**9,
    save_every=1000,
    keep_checkpoints=1,
    trackers=(),
)
# about the networks, and the loss, of the recipe f8-small
_COMPACT_256 = replace(_MEDIUM, loss=replace(_MEDIUM.loss, perceptual_weight=0.0))
_COMPACT = replace(_COMPACT_256, data=DataConfig(size=64, workers=3), steps=1000, batch_size=128, save_every=5000)
_COMPACT_MULTIPLIERS = {8: (2, 3, 6), 16: (2, 3, 6, 8), 32: (2, 3, 6, 6, 8), 64: (2, 3, 6, 6, 6, 8)}
_LITE0_ADVERSARIAL = AdversarialConfig(
    discriminator="projected",
    backbone="tf_efficientnet_lite0",
    weight=0.03,
    start_step=300,
    augment=("color", "translation", "cutout"),
    optimizer=OptimizerConfig(learning_rate=2e-4),
)
_LITE0_ADVERSARIAL_256 = replace(_LITE0_ADVERSARIAL, weight=0.1, start_step=2500)
_PAPER_OPTIMIZER = OptimizerConfig(learning_rate=2e-4)
_PAPER_ADVERSARIAL = AdversarialConfig(
    discriminator="projected", augment=("color", "translation", "cutout"), optimizer=_PAPER_OPTIMIZER
)
_PAPER = TrainConfig(
    data=DataConfig(size=256, workers=8),
    optimizer=_PAPER_OPTIMIZER,
    adversarial=_PAPER_ADVERSARIAL,
    steps=50_000,
    batch_size=512,
    gradient_accumulation=16,
    keep_checkpoints=1,
)
_MULTIPLIERS = {8: (1, 2, 2, 4), 16: (1, 1, 2, 2, 4), 32: (1, 1, 2, 2, 4, 4), 64: (1, 1, 2, 2, 4, 4, 4)}

SCALES = {
    "smoke": Scale(
        name="smoke",
        summary="a few steps at 32 px, to see that everything works; its results mean nothing",
        config=_SMOKE,
        adversarial=AdversarialConfig(
            discriminator="patch", options={}, start_step=1, optimizer=OptimizerConfig(learning_rate=1e-3)
        ),
        multipliers={4: (1, 1, 1), 8: (1, 1, 1, 1), 16: (1, 1, 1, 1, 1), 32: (1, 1, 1, 1, 1, 1)},
    ),
    "small": Scale(
        name="small",
        summary="64 px (made for Tiny ImageNet), a model of about 4M parameters, no discriminator unless named",
        config=_SMALL,
        adversarial=_LITE0_ADVERSARIAL,
        multipliers={8: (1, 1, 2, 2), 16: (1, 1, 2, 2, 2), 32: (1, 1, 2, 2, 2, 2), 64: (1, 1, 2, 2, 2, 2, 2)},
        features=_LITE1,
    ),
    "compact": Scale(
        name="compact",
        summary="64 px, compact networks of 4 to 12M parameters, Muon, no discriminator unless named",
        config=_COMPACT,
        adversarial=_LITE0_ADVERSARIAL,
        multipliers=_COMPACT_MULTIPLIERS,
        features=_LITE1,
    ),
    "compact-256": Scale(
        name="compact-256",
        summary="256 px, the networks and the loss of compact",
        config=_COMPACT_256,
        adversarial=_LITE0_ADVERSARIAL_256,
        multipliers=_COMPACT_MULTIPLIERS,
        features=_LITE1,
    ),
    "medium": Scale(
        name="medium",
        summary="256 px, compact networks of 15 to 20M parameters, no discriminator unless named",
        config=_MEDIUM,
        adversarial=_LITE0_ADVERSARIAL_256,
        multipliers={8: (3, 6, 12), 16: (3, 6, 8, 10), 32: (3, 6, 6, 8, 8), 64: (3, 6, 6, 6, 8, 8)},
        features=_LITE1,
        perceptual=(_LITE1,),
    ),
    "paper": Scale(
        name="paper",
        summary="the paper's: ImageNet at 256 px, 50,000 steps of 512 images against a projected discriminator on "
        "DINOv2; for ablations 128 px, 100,000 steps of 256 images without one",
        config=_PAPER,
        ablations=replace(
            _PAPER,
            data=DataConfig(size=128, workers=8),
            optimizer=OptimizerConfig(learning_rate=1e-4),
            adversarial=AdversarialConfig(),
            steps=100_000,
            batch_size=256,
            gradient_accumulation=4,
        ),
        adversarial=replace(_PAPER_ADVERSARIAL, optimizer=OptimizerConfig(learning_rate=1e-4)),
        multipliers=_MULTIPLIERS,
        features="inception",
        perceptual=("lpips_vgg",),
    ),
}
