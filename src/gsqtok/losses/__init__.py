"""Losses of the tokenizer's decoder: how far a reconstruction is from its picture."""

from gsqtok.losses.perceptual import PerceptualDistance, build_perceptual
from gsqtok.losses.reconstruction import reconstruction_loss

__all__ = ["PerceptualDistance", "build_perceptual", "reconstruction_loss"]
