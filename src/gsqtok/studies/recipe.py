"""What helps the training of a compact tokenizer: one change at a time from one recipe, at equal steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Literal

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import LEAST, QUALITY, Finding, Run, Study, exceeds, seeds
from gsqtok.studies.table import Table
from gsqtok.training import recipes
from gsqtok.training.config import CropConfig, TrainConfig

SHAPE = (4, 8, 65_536)  # groups, channels of each, codewords: 64 bits a position
SAME_BITS = {
    "8 groups of 256": (8, 4, 256),
    "16 groups of 16": (16, 2, 16),
    **{f"{4 * d} channels": (4, d, 65_536) for d in (4, 6, 12)},
}
NONE = "none"
# of the quantizer's losses beside others than log: as large beside them as in the recipe, at 29 dB
QUANTIZER_WEIGHTS: dict[Literal["l2", "l1"], float] = {"l2": 0.08, "l1": 0.4}


def runs(scale: Scale) -> list[Run]:
    """The recipe from three seeds, and each change from one."""
    smoke = scale.name == "smoke"
    base = scale.gsq(*((2, 4, 16) if smoke else SHAPE))
    found = [Run({"change": NONE, "seed": seed}, replace(base, seed=seed)) for seed in seeds(scale)]
    changes = dict(islice(_of_training(base), 1 if smoke else None))
    if not smoke:
        changes |= {name: scale.gsq(*shape) for name, shape in SAME_BITS.items()}
    if base.model.network == "compact":
        changes |= dict(_of_networks(base))
    return found + [Run({"change": name, "seed": 0}, config) for name, config in changes.items()]


def _of_training(base: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    for rate in (3e-4, 1e-3, 3e-3):
        yield f"AdamW at {rate:g}", replace(base, optimizer=replace(base.optimizer, name="adamw", learning_rate=rate))
    yield "no warm-up", replace(base, optimizer=replace(base.optimizer, warmup_steps=0))
    tenth = max(1, base.steps // 10)
    yield "warm-up over a tenth", replace(base, optimizer=replace(base.optimizer, warmup_steps=tenth))
    for schedule in ("cosine", "constant"):
        yield schedule, replace(base, optimizer=replace(base.optimizer, schedule=schedule))
    for decay in (0.9, 0.999):
        yield f"average with decay {decay:g}", replace(base, ema_decay=decay)
    for weight in (0.1 * base.loss.quantizer_weight, 10 * base.loss.quantizer_weight):
        yield f"quantizer's weight {weight:g}", replace(base, loss=replace(base.loss, quantizer_weight=weight))
    for error, weight in QUANTIZER_WEIGHTS.items():
        yield error, replace(base, loss=replace(base.loss, reconstruction=error, quantizer_weight=weight))
    loss = replace(base.loss, perceptual="timm:tf_efficientnet_lite0", perceptual_weight=0.1)
    yield "features of EfficientNet-Lite 0", replace(base, loss=loss)


def _of_networks(base: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    small, large = {"multipliers": (2, 3, 6), "blocks": (1, 2, 2)}, {"multipliers": (2, 4, 7), "blocks": (2, 2, 3)}
    for name, encoder, decoder in (("larger decoder", small, large), ("larger encoder", large, small)):
        model = replace(
            base.model,
            multipliers=encoder["multipliers"],
            encoder_blocks=encoder["blocks"],
            decoder_multipliers=decoder["multipliers"],
            decoder_blocks=decoder["blocks"],
        )
        yield name, replace(base, model=model)
    paper = replace(
        base.model, network="paper", channels=64, multipliers=(1, 2, 2, 4), encoder_blocks=1, decoder_blocks=1
    )
    yield "the paper's networks", replace(base, model=paper)
    both = replace(paper, adaptive_norm=True, depth_to_space=True)
    yield "the paper's, adaptive norm and depth-to-space", replace(base, model=both)
    if base.data.size == 256:
        crops = tuple(
            CropConfig(**crop | {"scales": tuple(crop.get("scales", [1]))})
            for crop in recipes.load("f8")["data"]["crops"]
        )
        yield "crops of 64, 128 and 256 px", replace(base, data=replace(base.data, crops=crops))


def findings(table: Table) -> list[Finding]:
    """Whether each change gives better images than the recipe."""
    found = []
    base = table.value("psnr", change=NONE)
    for change in table.values("change"):
        if change != NONE:
            value = table.value("psnr", change=change)
            because = f"{value.mean - base.mean:+.2f} dB beside {base}" if value else ""
            verdict = exceeds(value, base, LEAST)
            found.append(Finding(f"{change}: better images", verdict, because))
    return found


STUDY = Study(
    name="recipe",
    question="What helps a compact tokenizer's training: optimizer, schedule, loss, networks, crops, groups?",
    source="the recipes f8-small and f8, and the paper's VAE stage",
    runs=runs,
    metrics=(*QUALITY, "usage", "training_seconds"),
    plots=(),
    findings=findings,
    limitations="One seed a change, beside three of the recipe; a change's own best settings may be others. Equal "
    "steps are not equal time: the column of seconds says what a step costs, where runs do not share a card.",
)
