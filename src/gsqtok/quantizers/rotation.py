"""The rotation trick: a gradient that keeps the angle to the codeword (Fifty et al. 2024, arXiv 2410.06424)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rotation_trick(latent: Tensor, quantized: Tensor) -> Tensor:
    """``quantized`` to the last bit; the gradient reaches ``latent`` rotated and scaled as codeword to latent.

    Section 4.1: q = (|q| / |e|) R e, where R is the rotation in the plane of e and q that turns e onto q; R and the
    ratio of lengths count as constants. With unit vectors a = e / |e|, b = q / |q| and r = (a + b) / |a + b|,
    R = I - 2 r r^T + 2 b a^T (equation 4).

    Args:
        latent: (..., d) float32.
        quantized: (..., d) float32, the codeword of each latent.
    """
    e = latent.detach()
    a, b = F.normalize(e, dim=-1), F.normalize(quantized.detach(), dim=-1)
    r = F.normalize(a + b, dim=-1)
    length = e.norm(dim=-1, keepdim=True)
    # A latent of length 0 has no direction to rotate from: its gradient passes unscaled.
    scale = torch.where(length > 1e-12, quantized.detach().norm(dim=-1, keepdim=True) / length.clamp_min(1e-12), 1)
    along_r = (latent * r).sum(-1, keepdim=True)
    along_a = (latent * a).sum(-1, keepdim=True)
    rotated = scale * (latent - 2 * along_r * r + 2 * along_a * b)
    return quantized.detach() + (rotated - rotated.detach())
