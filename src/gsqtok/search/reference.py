"""The nearest codeword by direct float64 distances: slow, simple, and what the fast searches are tested against."""

import math

import torch
from torch import Tensor

from gsqtok.search.rows import largest_entry, unit

DISTANCES_PER_BLOCK = 1 << 22


def nearest(latents: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """Index of the nearest codeword, int64 (N,), of finite latents (N, d) in a finite codebook (V, d).

    Cosine compares chords between unit rows, |z - c|^2 = 2 - 2 z.c, from their differences: at d = 2 and V = 262,144
    neighbours differ by 3e-10 in z.c but by 2e-5 in the chord, which keeps the digits that the product rounds off.
    """
    on_sphere = metric == "cosine" and latents.shape[1] > 1
    if on_sphere:
        latents, codebook = unit(latents), unit(codebook)
        zero_latents, zero_codewords = ~latents.any(dim=1), ~codebook.any(dim=1)
    else:
        scale = largest_entry(latents, codebook)
        latents, codebook = latents.double() / scale, codebook.double() / scale

    found = torch.empty(len(latents), dtype=torch.int64, device=latents.device)
    rows = max(1, DISTANCES_PER_BLOCK // len(codebook))
    for start in range(0, len(latents), rows):
        block = slice(start, start + rows)
        distance = torch.cdist(latents[block], codebook, compute_mode="donot_use_mm_for_euclid_dist")
        if on_sphere:  # similarity 0 is a right angle, a chord of sqrt(2)
            distance[:, zero_codewords] = math.sqrt(2)
            distance[zero_latents[block]] = math.sqrt(2)
        found[block] = distance.argmin(dim=1)
    return found
