"""How far a spherical codebook is from the latents of real images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gsqtok.data import ImageTransform, eval_loader
from gsqtok.quantizers import GSQ
from gsqtok.quantizers.codebook import nearest_codewords, take_codewords
from gsqtok.quantizers.fixed_sphere import FixedSphere
from gsqtok.tokenizer import ImageTokenizer


@torch.no_grad()
def spherical_error(
    tokenizer: ImageTokenizer,
    source: Any,
    transform: ImageTransform,
    images: int,
    codebook: Tensor | None = None,
    workers: int = 0,
) -> float | None:
    """Average |z - c|^2 between the directions of the groups' latents and of their nearest codewords.

    0 is lossless, 2 a right angle; ``gsqtok.quantizers.sphere`` has what a random code and what none can reach.

    Args:
        tokenizer: its quantizer normalises latents by l2 and looks up in one codebook.
        source: what ``open_source`` returns.
        transform: of the images.
        images: about so many, the first ones.
        codebook: (V, d), measure this one instead of the trained one.
        workers: processes that decode images.

    Returns:
        The error; None for a quantizer that does not work on the sphere.
    """
    quantizer = tokenizer.quantizer
    if not (isinstance(quantizer, FixedSphere) or (isinstance(quantizer, GSQ) and quantizer.norm == "l2")):
        return None
    directions = F.normalize((quantizer.codebook if codebook is None else codebook).to(tokenizer.device), dim=-1)
    errors: list[Tensor] = []
    for batch in eval_loader(source, transform, batch_size=100, workers=workers):
        latent = tokenizer.encoder(batch["image"].to(tokenizer.device)).movedim(1, -1)
        latent = F.normalize(latent.unflatten(-1, (-1, directions.shape[-1])), dim=-1)
        chosen = take_codewords(directions, nearest_codewords(latent, directions, "cosine"))
        errors.append((chosen - latent).double().square().sum(-1).flatten().cpu())
        images -= len(batch["image"])
        if images <= 0:
            break
    return torch.cat(errors).mean().item()
