"""What every quantizer with a stored codebook does: search, look up, and the two losses that tie it to the latents."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor
from torch.nn import functional as F

from gsqtok.options import Rule
from gsqtok.search import nearest

CodebookSize = Annotated[int, Rule("of at least 2", lambda n: n >= 2)]


def nearest_codewords(latent: Tensor, codebook: Tensor, metric: Literal["cosine", "euclidean"]) -> Tensor:
    """Index of the nearest codeword: latent (..., d), codebook (V, d) -> int64 (...)."""
    return nearest(latent.reshape(-1, codebook.shape[1]), codebook, metric=metric).view(latent.shape[:-1])


def take_codewords(codebook: Tensor, indices: Tensor) -> Tensor:
    """Codewords by index: codebook (V, d), indices (...) -> (..., d) float32.

    Index -1, which the search gives where nothing is nearest, takes codeword 0: reading before the codebook would end
    the process on a GPU. The caller sees the -1.
    """
    return F.embedding(indices.clamp_min(0), codebook.float())


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
