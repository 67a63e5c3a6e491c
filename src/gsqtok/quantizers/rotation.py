"""The rotation trick: a gradient that keeps the angle to the codeword (Fifty et al. 2024, arXiv 2410.06424)."""

from __future__ import annotations

import torch
from torch import Tensor

from gsqtok.search import normalize

SHORT = 1e-12


def rotation_trick(latent: Tensor, quantized: Tensor) -> Tensor:
    """``quantized`` to the last bit; the gradient reaches ``latent`` rotated and scaled as codeword to latent.

    Section 4.1: q = (|q| / |e|) R e, where R is the rotation in the plane of e and q that turns e onto q; R and the
    ratio of lengths count as constants. With unit vectors a = e / |e|, b = q / |q| and r = (a + b) / |a + b|,
    R = I - 2 r r^T + 2 b a^T (equation 4).

    Args:
        latent: (..., d) float32.
        quantized: (..., d) float32, the codeword of each latent.
    """
    e, q = latent.detach(), quantized.detach()
    a, b = normalize(e), normalize(q)
    r = normalize(a + b)
    # |q| / |e|: projected on their own directions, since a square may overflow. A latent of length 0 has no direction
    # to rotate from: its gradient passes unscaled.
    length = (e * a).sum(-1, keepdim=True)
    scale = torch.where(length > SHORT, (q * b).sum(-1, keepdim=True) / length.clamp_min(SHORT), 1)
    along_r = (latent * r).sum(-1, keepdim=True)
    along_a = (latent * a).sum(-1, keepdim=True)
    rotated = scale * (latent - 2 * along_r * r + 2 * along_a * b)
    return q + (rotated - rotated.detach())
