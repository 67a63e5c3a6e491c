"""Discriminators of the adversarial stage: what tells reconstructions from images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gsqtok.discriminators.augment import DiffAugment
from gsqtok.discriminators.base import Discriminator
from gsqtok.discriminators.official_stylegan import OfficialStyleGANDiscriminator
from gsqtok.discriminators.patch import PatchDiscriminator
from gsqtok.discriminators.projected import ProjectedDiscriminator
from gsqtok.discriminators.stylegan import StyleGANDiscriminator

__all__ = [
    "DiffAugment",
    "Discriminator",
    "OfficialStyleGANDiscriminator",
    "PatchDiscriminator",
    "ProjectedDiscriminator",
    "StyleGANDiscriminator",
    "build_discriminator",
]

_REGISTRY: dict[str, Callable[..., Discriminator]] = {
    "patch": PatchDiscriminator,
    "stylegan": StyleGANDiscriminator,
    "projected": ProjectedDiscriminator,
}
_OFFICIAL: dict[str, Callable[..., Discriminator]] = {
    "stylegan": OfficialStyleGANDiscriminator,
    "projected": partial(ProjectedDiscriminator, official=True),
}


def build_discriminator(
    name: str, *, augment: Sequence[str] | DiffAugment = (), official: bool = False, **options: Any
) -> Discriminator:
    """Build a discriminator by name.

    Args:
        name: ``"patch"`` (PatchGAN), ``"stylegan"`` (StyleGAN2's) or ``"projected"`` (heads on a frozen pretrained
            network, DINOv2 unless told otherwise: the paper's choice).
        augment: random changes of every image before it is judged, of ``DiffAugment.POLICIES``.
        official: the network of the paper's own code, where it differs (``"stylegan"``, ``"projected"``).
        options: the network's own; ``help(type(discriminator))`` explains them.

    Raises:
        ValueError: an unknown name or option (the message lists the known ones), or a value that is refused.
        FileNotFoundError: the pretrained network's weights are not to be had; the message says from where.
    """
    if name not in _REGISTRY:
        raise ValueError(f"unknown discriminator {name!r}; known: {', '.join(_REGISTRY)}")
    make = _OFFICIAL.get(name, _REGISTRY[name]) if official else _REGISTRY[name]
    known = [p for p in inspect.signature(make).parameters if p not in ("augment", "official")]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"discriminator {name!r} has no option {unknown[0]!r}; known: {', '.join(known)}")
    return make(augment=augment, **options)
