"""Discriminators, their losses and Adam's betas: quality and stability."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gsqtok.studies.scale import Scale
from gsqtok.studies.study import QUALITY, Finding, Plot, Run, Study, all_of, better, breaks, distance_of, falls
from gsqtok.studies.table import Table, Value
from gsqtok.training.config import AdversarialConfig

LOSSES: dict[str, tuple[Any, Any]] = {  # generator, discriminator
    "NH": ("non_saturating", "hinge"),
    "NV": ("non_saturating", "vanilla"),
    "NN": ("non_saturating", "non_saturating"),
    "HH": ("hinge", "hinge"),
    "HV": ("hinge", "vanilla"),
    "HN": ("hinge", "non_saturating"),
}
PAIRS = {"smoke": ("NH",), "small": ("NH", "HH"), "paper": tuple(LOSSES)}
OWN: tuple[Any, ...] = ("patch", "stylegan", "projected")
OFFICIAL_STYLEGAN = "official-stylegan"  # the network of the paper's own code, with its losses
KINDS: dict[str, tuple[Any, ...]] = {
    "smoke": ("patch", OFFICIAL_STYLEGAN),
    "small": (*OWN, OFFICIAL_STYLEGAN),
    "paper": (*OWN, OFFICIAL_STYLEGAN),
}
BETAS = ((0.5, 0.9), (0.9, 0.99))
QUANTIZER = {"smoke": (2, 2, 16), "small": (4, 4, 4096), "paper": (1, 8, 8192)}  # G, d, V


def runs(scale: Scale) -> list[Run]:
    """Without a discriminator; then each with each pair of losses and betas, of both optimizers."""
    g, d, size = QUANTIZER[scale.settings]
    base = scale.gsq(g, d, size, ablation=True)
    none = replace(base, adversarial=AdversarialConfig())
    table = [Run({"discriminator": "none", "losses": "", "betas": ""}, none)]
    for kind in KINDS[scale.settings]:
        for pair in PAIRS[scale.settings]:
            generator, discriminator = LOSSES[pair]
            for betas in BETAS:
                official = kind == OFFICIAL_STYLEGAN
                adversarial = replace(
                    scale.adversarial,
                    discriminator="stylegan" if official else kind,
                    generator_loss=generator,
                    discriminator_loss=discriminator,
                    optimizer=replace(scale.adversarial.optimizer, betas=betas),
                )
                config = replace(base, adversarial=adversarial, optimizer=replace(base.optimizer, betas=betas))
                if official:
                    config = replace(config, official=("losses", "discriminator"))
                varied = {"discriminator": kind, "losses": pair, "betas": f"{betas[0]:g}, {betas[1]:g}"}
                table.append(Run(varied, config))
    return table


def findings(table: Table) -> list[Finding]:
    """Distance in features against no discriminator; how many runs diverged or skipped steps."""
    distance = distance_of(table)
    without = table.value(distance, discriminator="none")
    found = []
    for kind in (*OWN, OFFICIAL_STYLEGAN):
        claim = f"a {kind} discriminator brings reconstructions closer in features"
        done = [row for row in table.rows_of(discriminator=kind) if distance in row.metrics]
        if not done or not without:
            found.append(Finding(claim, "not tested"))
            continue
        best = min(done, key=lambda row: row.metrics[distance])
        setting, value = f"{best.varied['losses']}, betas {best.varied['betas']}", best.metrics[distance]
        because = f"{distance.replace('_', ' ')} {value:.4g} at its best ({setting}), {without.mean:.4g} without"
        found.append(Finding(claim, falls("frechet_distance", Value(value), without), because))
    pairs, told = [], []
    for kind in OWN:
        held = {"discriminator": kind, "betas": "0.9, 0.99"}
        near, far = (table.value(distance, losses=losses, **held) for losses in ("NH", "HH"))
        if near and far:
            pairs.append(falls("frechet_distance", near, far))
            told.append(f"{kind} {near} and {far}")
    claim = "a non-saturating generator loss is better than hinge beside a hinge discriminator, in features"
    found.append(Finding(claim, all_of(pairs), f"Fréchet distances: {'; '.join(told)}"))
    for kind, name in {"stylegan": "StyleGAN2's own", OFFICIAL_STYLEGAN: "the official code's StyleGAN"}.items():
        verdict, some = breaks(table, discriminator=kind)
        claim = f"with {name} discriminator training breaks (NaN)"
        found.append(Finding(claim, verdict, f"{some} had steps that were not finite"))
    wide, paper = (table.value("psnr", discriminator="patch", losses="NH", betas=b) for b in ("0.5, 0.9", "0.9, 0.99"))
    claim = "PatchGAN is better at betas (0.9, 0.99) than at (0.5, 0.9), in PSNR"
    return [*found, Finding(claim, better(paper, wide), f"{paper} against {wide} dB")]


STUDY = Study(
    name="discriminator",
    question="Which discriminator, losses and Adam betas give the best images, and which of them break?",
    source="arXiv 2412.02632, the GAN stage's tables",
    runs=runs,
    metrics=("frechet_distance", *QUALITY, "usage", "skipped_steps", "training_memory_gib"),
    plots=(
        Plot("psnr", "losses", "psnr", ("discriminator", "betas")),
        Plot("ssim", "losses", "ssim", ("discriminator", "betas")),
    ),
    findings=findings,
    limitations="One seed a setting, and the best of several, which flatters the discriminators. `stylegan` is "
    "StyleGAN2's own (scaled skip sums, equalised learning rates, minibatch deviation). `official-stylegan`, with "
    "which the paper saw NaN, blurs and averages, adds skips unscaled, has neither equalised rates nor minibatch "
    "deviation, and is trained with the official code's losses; it was written from a description of that code. The "
    "Fréchet distance is taken in a network of the family that the projected discriminator and the perceptual term "
    "look through at the small scale, which favours them: look at the images.",
)
