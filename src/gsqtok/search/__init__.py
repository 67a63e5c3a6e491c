"""The nearest codeword, exactly, for any codebook size: the only place where distances to codewords are computed.

Nothing here ever holds the N x V matrix of distances. One function, [nearest][gsqtok.search.nearest], picks the search:
sorting at d <= 2, a fused Triton kernel on CUDA; elsewhere all scores where there are few codewords, in few dimensions
a grid over the sphere if the codebook stays, or else SciPy's tree, and blocks that fit the cache.
"""

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor

from gsqtok.search import chunked, few, grid, sorted, tree
from gsqtok.search.codebook import Codebook, kept
from gsqtok.search.rows import check, finite, normalize, require_finite

__all__ = ["nearest", "normalize"]


def nearest(
    latents: Tensor,
    codebook: Tensor,
    *,
    metric: Literal["cosine", "euclidean"] = "cosine",
    k: int = 1,
    use_triton: bool | None = None,
) -> Tensor:
    """Find the nearest codeword of every latent, or the k nearest.

    Args:
        latents: (N, d), any floating dtype, contiguous or not; N may be 0. (N, G, d) with a codebook for each of G
            groups.
        codebook: (V, d), any floating dtype, on the same device; V at least 1. (G, V, d): group g of a latent is
            searched in codebook g, all groups by the same kernels at once on CUDA.
        metric: "cosine" for the largest inner product of the rows scaled to length 1 (the GSQ lookup, arXiv
            2412.02632, section 3), "euclidean" for the least distance (plain vector quantization). At d = 1 a sphere is
            only a sign, so there both compare by value, as the paper drops the normalisation.
        k: how many codewords, 1 to V.
        use_triton: None takes the fused kernels wherever they can run (CUDA, d up to 128, k = 1), True requires them,
            False searches in blocks.

    Returns:
        Indices, int64 (N,), with groups (N, G); of k > 1 codewords (N, k) or (N, G, k), the nearest first.
        Deterministic, the same under autocast and `torch.compile`. No gradient flows.

        Euclidean, d >= 2: the codeword of the least squared distance in float64, which is summed term by term from the
        inputs as they are; of equal ones the lowest index. Inputs of float32 and less may be of any size. Of float64
        inputs, differences below 1e-150 of the largest codeword count as 0.
        Cosine, d >= 3: the same of rows scaled to length 1 in float64, so the similarity is within 1e-13 of the best.
        d = 2 (cosine) is exact by angle and d = 1 by value; of equally near codewords the lowest index.
        k > 1: ordered by that float64 distance at every d (cosine: of unit rows), then by index.
        A zero row has similarity 0 to everything, so a zero latent gets index 0.

        A latent with NaN or infinity has no nearest codeword. On a CPU that raises. On CUDA, where raising would make
        the host wait for the device, such a latent gets -1, and so does every latent if the codebook holds NaN or
        infinity: check `(indices < 0).any()` where a wait is affordable. An embedding lookup of -1 fails on its own,
        but `codebook[indices]` would take the last codeword.

        The kernels never wait for the device. The search in blocks does on CUDA, so no CUDA graph can record it.

    Raises:
        ValueError: wrong rank, d that differ, an empty codebook, k out of range, unequal devices, an unknown metric;
            NaN or infinity in CPU input (the message counts the rows and names the first); use_triton=True where the
            kernel cannot run.
        TypeError: a dtype that is not floating-point.
    """
    check(latents, codebook, metric, k)
    found: Tensor = torch.ops.gsqtok.nearest.default(latents.detach(), codebook.detach(), metric, use_triton, k)
    return found


torch.library.define(
    "gsqtok::nearest", "(Tensor latents, Tensor codebook, str metric, bool? use_triton, int k=1) -> Tensor"
)


@torch.library.impl("gsqtok::nearest", "CompositeExplicitAutograd")
def _nearest(latents: Tensor, codebook: Tensor, metric: str, use_triton: bool | None, k: int = 1) -> Tensor:
    device = latents.device
    if len(latents) == 0:
        return _nearest_fake(latents, codebook, metric, use_triton, k)
    if device.type == "mps":  # has no float64
        found: Tensor = torch.ops.gsqtok.nearest(latents.cpu(), codebook.cpu(), metric, use_triton, k)
        return found.to(device)
    if device.type == "cpu":
        latents, codebook = latents.detach(), codebook.detach()  # an exported program may have lost those above
        require_finite("latents", latents)
    if use_triton or (use_triton is None and latents.is_cuda):
        obstacle = _obstacle_to_triton(latents, codebook, k)
        if obstacle is None:
            from gsqtok.search import sorted_triton, sphere_triton, triton

            with torch.cuda.device(latents.get_device()):
                if latents.shape[-1] == 1 or (latents.shape[-1] == 2 and metric == "cosine"):
                    return sorted_triton.nearest(latents, codebook)
                if sphere_triton.pays(latents, codebook, metric):
                    return sphere_triton.nearest(latents, codebook)
                return triton.nearest(latents, codebook, metric)
        if use_triton:
            raise ValueError(f"use_triton=True, but {obstacle}; leave use_triton at None")
    return _without_kernels(latents, codebook, metric, k)


def _without_kernels(latents: Tensor, codebook: Tensor, metric: str, k: int) -> Tensor:
    device, valid = latents.device, None
    if device.type != "cpu":
        valid = finite(latents) & finite(codebook).all(-1)
        latents, codebook = latents.nan_to_num(0, 0, 0), codebook.nan_to_num(0, 0, 0)
    # Autocast would round products to half precision, also inside an operator.
    rounds = torch.is_autocast_enabled(device.type)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False) if rounds else nullcontext():
        found = _search(latents, kept(codebook) if device.type == "cpu" else Codebook(codebook), metric, k)
    found = found.clone()  # out of inference mode, which spares small searches a tenth of their time
    if valid is not None:
        found = found.where(valid.view(*valid.shape, *[1] * (found.ndim - valid.ndim)), -1)
    return found


def _search(latents: Tensor, codebook: Codebook, metric: str, k: int) -> Tensor:
    d, on_cpu = latents.shape[-1], latents.device.type == "cpu"
    is_sorted = k == 1 and (d == 1 or (d == 2 and metric == "cosine"))
    at_once = on_cpu and k == 1 and not is_sorted and few.pays(codebook)
    if codebook.rows.ndim == 3:
        if at_once:
            return few.nearest(latents, codebook, metric)
        groups = zip(latents.unbind(1), codebook.of_groups(), strict=True)
        return torch.stack([_search(rows.contiguous(), of_group, metric, k) for rows, of_group in groups], dim=1)
    if is_sorted:
        return sorted.nearest_on_line(latents, codebook) if d == 1 else sorted.nearest_on_circle(latents, codebook)
    metric = metric if d > 1 else "euclidean"
    codebook.searched += len(latents)
    if on_cpu and k == 1 and metric == "cosine" and grid.pays(codebook):
        of_sphere = codebook.prepared(grid.Grid.of)
        if of_sphere is not None:
            return of_sphere.nearest(latents)
    if on_cpu and tree.pays(latents, codebook):
        return tree.nearest(latents, codebook, metric, k)
    return few.nearest(latents, codebook, metric) if at_once else chunked.nearest(latents, codebook, metric, k)


def _obstacle_to_triton(latents: Tensor, codebook: Tensor, k: int) -> str | None:
    if k > 1:
        return "the kernels find one codeword"
    try:
        from gsqtok.search import triton
    except ImportError:
        return "Triton is not installed"
    return triton.obstacle(latents, codebook)


def _nearest_fake(latents: Tensor, codebook: Tensor, metric: str, use_triton: bool | None, k: int = 1) -> Tensor:
    shape = latents.shape[:-1] if k == 1 else (*latents.shape[:-1], k)
    return latents.new_empty(shape, dtype=torch.int64)


torch.library.register_fake("gsqtok::nearest", _nearest_fake)
