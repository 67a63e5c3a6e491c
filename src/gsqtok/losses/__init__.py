"""Losses: how far a reconstruction is from its image, and whether a discriminator takes it for one."""

from gsqtok.losses.adversarial import LeCam, adaptive_weight, discriminator_loss, generator_loss, r1_penalty
from gsqtok.losses.perceptual import PerceptualDistance, build_perceptual
from gsqtok.losses.reconstruction import reconstruction_loss

__all__ = [
    "LeCam",
    "PerceptualDistance",
    "adaptive_weight",
    "build_perceptual",
    "discriminator_loss",
    "generator_loss",
    "r1_penalty",
    "reconstruction_loss",
]
