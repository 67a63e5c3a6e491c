"""The nearest codeword, exactly, for any codebook size: the only place where distances to codewords are computed.

Nothing here ever holds the N x V matrix of distances. One function, [nearest][gsqtok.search.nearest], picks the search:
sorting at d <= 2, a fused Triton kernel on CUDA, blocks that fit the cache elsewhere.
"""

from typing import Literal

import torch
from torch import Tensor

from gsqtok.search import chunked, sorted
from gsqtok.search.rows import check, finite, require_finite

__all__ = ["nearest"]


def nearest(
    latents: Tensor,
    codebook: Tensor,
    *,
    metric: Literal["cosine", "euclidean"] = "cosine",
    use_triton: bool | None = None,
) -> Tensor:
    """Index of the nearest codeword of every latent.

    Args:
        latents: (N, d), any floating dtype, contiguous or not; N may be 0.
        codebook: (V, d), any floating dtype, on the same device; V at least 1.
        metric: "cosine" for the largest inner product of the rows scaled to length 1 (the GSQ lookup, arXiv
            2412.02632, section 3), "euclidean" for the least distance (plain vector quantization). At d = 1 a sphere is
            only a sign, so there both compare by value, as the paper drops the normalisation.
        use_triton: None picks the fused kernel wherever it can run, False never does, True requires it.

    Returns:
        int64 (N,), deterministic, the same under autocast and `torch.compile`. Ties go to the lowest index. At d >= 3
        the chosen similarity is within 2e-7 of the best one; at d = 2 (cosine) the choice is exact by angle and at
        d = 1 by value. A zero row has similarity 0 to everything, so a zero latent gets index 0. No gradient flows.

        A latent with NaN or infinity has no nearest codeword. On a CPU that raises. On CUDA, where raising would make
        the host wait for the device, such a latent gets -1, and so does every latent if the codebook holds NaN or
        infinity: check `(indices < 0).any()` where a wait is affordable. An embedding lookup of -1 fails on its own,
        but `codebook[indices]` would take the last codeword.

    Raises:
        ValueError: wrong rank, d that differ, an empty codebook, unequal devices, an unknown metric; NaN or infinity in
            CPU input (the message counts the rows and names the first); use_triton=True where the kernel cannot run.
        TypeError: a dtype that is not floating-point.
    """
    check(latents, codebook, metric)
    if use_triton:
        raise ValueError("use_triton=True, but the Triton kernel needs CUDA tensors; leave use_triton at None")
    return torch.ops.gsqtok.nearest(latents.detach(), codebook.detach(), metric, use_triton)


torch.library.define("gsqtok::nearest", "(Tensor latents, Tensor codebook, str metric, bool? use_triton) -> Tensor")


@torch.library.impl("gsqtok::nearest", "CompositeExplicitAutograd")
def _nearest(latents: Tensor, codebook: Tensor, metric: str, use_triton: bool | None) -> Tensor:
    if len(latents) == 0:
        return torch.empty(0, dtype=torch.int64, device=latents.device)
    if latents.device.type == "mps":  # has no float64
        return _nearest(latents.cpu(), codebook.cpu(), metric, use_triton).to(latents.device)
    on_cpu = latents.device.type == "cpu"
    if on_cpu:
        require_finite("latents", latents)
        require_finite("codebook", codebook)
    else:
        valid = finite(latents) & finite(codebook).all()
        latents, codebook = latents.nan_to_num(0, 0, 0), codebook.nan_to_num(0, 0, 0)
    # Autocast would round products to half precision, also inside an operator.
    with torch.autocast(latents.device.type, enabled=False):
        if latents.shape[1] == 1:
            found = sorted.nearest_on_line(latents, codebook)
        elif latents.shape[1] == 2 and metric == "cosine":
            found = sorted.nearest_on_circle(latents, codebook)
        else:
            found = chunked.nearest(latents, codebook, metric)
    return found if on_cpu else torch.where(valid, found, -1)


@torch.library.register_fake("gsqtok::nearest")
def _nearest_fake(latents: Tensor, codebook: Tensor, metric: str, use_triton: bool | None) -> Tensor:
    return latents.new_empty(latents.shape[0], dtype=torch.int64)
