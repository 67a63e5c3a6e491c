"""What every quantizer with a stored codebook does: search, look up, and the two losses that tie it to the latents."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gsqtok.options import Rule
from gsqtok.search import nearest, normalize

CodebookSize = Annotated[int, Rule("of at least 2", lambda n: n >= 2)]


def nearest_codewords(latent: Tensor, codebook: Tensor, metric: Literal["cosine", "euclidean"]) -> Tensor:
    """Index of the nearest codeword: latent (..., d), codebook (V, d) -> int64 (...).

    With a codebook for each group: latent (..., G, d), codebook (G, V, d) -> int64 (..., G).
    """
    if codebook.ndim == 3 and torch.compiler.is_exporting():  # ONNX is told how to search one codebook
        alone = (nearest_codewords(latent[..., g, :], codebook[g], metric) for g in range(len(codebook)))
        return torch.stack(list(alone), -1)
    rows = latent.reshape(-1, *codebook.shape[:-2], codebook.shape[-1])
    return nearest(rows, codebook, metric=metric).view(latent.shape[:-1])


def take_codewords(codebook: Tensor, indices: Tensor) -> Tensor:
    """Codewords by index: codebook (V, d), indices (...) -> (..., d) float32.

    With a codebook for each group: codebook (G, V, d), indices (..., G) -> (..., G, d).

    Index -1, which the search gives where nothing is nearest, takes codeword 0: reading before the codebook would end
    the process on a GPU. The caller sees the -1.
    """
    indices = indices.clamp_min(0)
    if codebook.ndim == 3:
        groups, codewords = codebook.shape[:2]
        indices = indices + torch.arange(groups, device=indices.device) * codewords
    return F.embedding(indices, codebook.float().flatten(0, -2))


def codebook_and_commitment(
    latent: Tensor, codewords: Tensor, commitment_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Codebook loss mse(codeword, sg(latent)) and commitment loss mse(sg(codeword), latent).

    Source: van den Oord et al. 2017, arXiv 1711.00937, equation 3.

    Args:
        latent: (..., d) float32.
        codewords: (..., d) float32, the nearest codewords.
        commitment_weight: weight of the commitment loss in the sum; the codebook loss has weight 1.

    Returns:
        Their weighted sum, and both by name (``codebook``, ``commitment``). They are 0 for an empty batch.
    """
    codebook = mean_square(codewords - latent.detach())
    commitment = mean_square(latent - codewords.detach())
    return codebook + commitment_weight * commitment, {"codebook": codebook, "commitment": commitment}


def mean_square(difference: Tensor) -> Tensor:
    """Mean square over all elements; 0, not NaN, when there are none (a rank may get an empty batch)."""
    return difference.square().sum() / max(difference.numel(), 1)


def orthogonality(codebook: Tensor) -> Tensor:
    """Mean squared cosine between the codewords of a codebook (..., V, d), beyond what each has with itself: >= 0.

    |C C^T / V - I / V|^2 of unit rows C, which is 0 where all are at right angles (Shin et al. 2021, arXiv 2112.00384,
    equation 2). |C C^T|^2 = |C^T C|^2, so that nothing of V x V is made.
    """
    unit = normalize(codebook)
    size = codebook.shape[-2]
    gram = unit.transpose(-1, -2) @ unit / size
    return (gram.square().sum((-1, -2)) - 1 / size).mean()
