"""Discriminators of the adversarial stage: what tells reconstructions from images."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from gsqtok.discriminators.augment import DiffAugment
from gsqtok.discriminators.base import Discriminator
from gsqtok.discriminators.patch import PatchDiscriminator
from gsqtok.discriminators.projected import ProjectedDiscriminator
from gsqtok.discriminators.stylegan import StyleGANDiscriminator

__all__ = [
    "DiffAugment",
    "Discriminator",
    "PatchDiscriminator",
    "ProjectedDiscriminator",
    "StyleGANDiscriminator",
    "build_discriminator",
]

_REGISTRY: dict[str, type[Discriminator]] = {
    "patch": PatchDiscriminator,
    "stylegan": StyleGANDiscriminator,
    "projected": ProjectedDiscriminator,
}


def build_discriminator(name: str, *, augment: Sequence[str] = (), **options: Any) -> Discriminator:
    """Build a discriminator by name.

    Args:
        name: ``"patch"`` (PatchGAN), ``"stylegan"`` (StyleGAN2's) or ``"projected"`` (heads on a frozen pretrained
            network, DINOv2 unless told otherwise: the paper's choice).
        augment: random changes of every image before it is judged, of ``DiffAugment.POLICIES``.
        options: the network's own; ``help(type(discriminator))`` explains them.

    Raises:
        ValueError: an unknown name or option (the message lists the known ones), or a value that is refused.
        FileNotFoundError: the pretrained network's weights are not to be had; the message says from where.
    """
    if name not in _REGISTRY:
        raise ValueError(f"unknown discriminator {name!r}; known: {', '.join(_REGISTRY)}")
    known = [p for p in inspect.signature(_REGISTRY[name]).parameters if p != "augment"]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"discriminator {name!r} has no option {unknown[0]!r}; known: {', '.join(known)}")
    return _REGISTRY[name](augment=augment, **options)
