"""The GAN recipe of the paper's own code beside ours: quality, skipped steps, and whether its StyleGAN gives NaN."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import QUALITY, Finding, Plot, Run, Study, better, breaks, distance_of, falls, seeds
from gsqtok.studies.table import Table
from gsqtok.training.config import AdversarialConfig, Component

# What a recipe takes from the official code. The average is left out: .999 a step from 0 keeps 37% of the random start
# after 1,000 steps.
OFFICIAL: tuple[Component, ...] = ("losses", "augment", "discriminator", "initialization")
ARMS = ("none", "ours", "official", "official-stylegan")


def runs(scale: Scale) -> list[Run]:
    """Each recipe from three seeds at 128 px: f8, one group of 8,192 codewords, 0.2 bits/px, as in the GAN stage."""
    base = scale.gsq(1, *((2, 16) if scale.name == "smoke" else (8, 8192)), ablation=True)
    if scale.name not in ("smoke", "paper"):
        base = replace(base, data=replace(base.data, size=128, crops=(), workers=14), batch_size=32)
    found = []
    for seed in seeds(scale):
        for arm in ARMS:
            changes: dict[str, Any] = {"adversarial": replace(scale.adversarial, start_step=0), "seed": seed}
            if arm == "none":
                changes["adversarial"] = AdversarialConfig()
            if arm.startswith("official"):
                changes |= {"official": OFFICIAL, "data": replace(base.data, crop="center", flip=False)}
            if arm == "official-stylegan":
                changes["adversarial"] = replace(changes["adversarial"], discriminator="stylegan", options={})
            found.append(Run({"recipe": arm, "seed": seed}, replace(base, **changes)))
    return found


def findings(table: Table) -> list[Finding]:
    """Each recipe beside ours, in features and in PSNR; steps that were not finite."""
    distance, found = distance_of(table), []
    for near, far in (("ours", "none"), ("official", "none"), ("ours", "official")):
        a, b = (table.value(distance, recipe=recipe) for recipe in (near, far))
        claim = f"the recipe '{near}' brings reconstructions closer in features than '{far}'"
        found.append(Finding(claim, falls("frechet_distance", a, b), f"Fréchet distance {a} against {b}"))
    ours, official = (table.value("psnr", recipe=recipe) for recipe in ("ours", "official"))
    claim = "our recipe gives better images than the official one, in PSNR"
    found.append(Finding(claim, better(ours, official), f"{ours} against {official} dB"))
    for arm in ARMS[1:]:
        verdict, some = breaks(table, recipe=arm)
        claim = f"with the recipe '{arm}' training breaks (NaN)"
        found.append(Finding(claim, verdict, f"{some} had steps that were not finite"))
    return found


STUDY = Study(
    name="official",
    question="Does the paper's own GAN recipe train better than ours, and does its StyleGAN discriminator end in NaN?",
    source="the official code of arXiv 2412.02632, where it differs from the paper or the paper is silent",
    runs=runs,
    metrics=("frechet_distance", *QUALITY, "usage", "skipped_steps", "gradient_norm", "gradient_peak"),
    plots=(Plot("psnr", "recipe", "psnr"), Plot("ssim", "recipe", "ssim")),
    findings=findings,
    limitations="Short trainings from random weights, against heads on EfficientNet-Lite at the small scale; the "
    "official recipe was made for DINOv2 and 80,000 steps. `official` takes losses, augmentation, heads, "
    "initialization and crops from the official code, not the average; `official-stylegan` its discriminator, too. "
    "Gradients are those of the tokenizer.",
)
