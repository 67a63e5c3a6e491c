"""The codebook: neighbours of a codeword, how often each is used, and where they lie."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gsqtok import search
from gsqtok.evaluation.report.plots import COLOURS, style
from gsqtok.quantizers import Quantizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_SEARCHED = 2**18  # codewords whose values are all looked up
_MAX_PLOTTED = 4096  # points that a plot draws; of more, every n-th
_MAX_ANGLES = 16_384  # codewords whose nearest neighbours are found
_BLOCK = 1024


def neighbours(quantizer: Quantizer, tokens: Tensor, which: int, nearest: int = 5) -> list[tuple[int, float]]:
    """The codewords that change the latent least when they take the place of one token.

    This needs no more of a quantizer than ``decode``, so it serves codebooks, lattices and residual stages alike.

    Args:
        quantizer: any.
        tokens: (tokens_per_position,) integers, one position.
        which: the token to replace.
        nearest: how many.

    Returns:
        Codeword and Euclidean distance of the latents, nearest first, the token itself left out.

    Raises:
        ValueError: a codebook too large to look through here, or none.
    """
    size = quantizer.codebook_size
    if not 2 <= size <= MAX_SEARCHED:
        raise ValueError(f"neighbours are shown for 2 to {MAX_SEARCHED:,} codewords, this tokenizer has {size:,}")
    device = next((t.device for t in (*quantizer.parameters(), *quantizer.buffers())), tokens.device)
    here = quantizer.decode(tokens.to(device))
    distances = []
    for block in torch.arange(size, device=device).split(_BLOCK):
        candidates = tokens.to(device).repeat(len(block), 1)
        candidates[:, which] = block
        distances.append((quantizer.decode(candidates) - here).double().norm(dim=-1))
    distance = torch.cat(distances)
    distance[int(tokens[which])] = math.inf
    found = distance.topk(min(nearest, size - 1), largest=False, sorted=True)
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def directions(quantizer: Quantizer) -> Tensor | None:
    """The codebook as float64 (V, d), each codeword on the unit sphere (d >= 2); None for a quantizer without one.

    Codewords of one channel stay as they are.
    """
    codebook = getattr(quantizer, "codebook", None)
    if not isinstance(codebook, Tensor) or codebook.ndim != 2:
        return None
    codebook = codebook.detach().double().cpu()
    return codebook if codebook.shape[1] == 1 else torch.nn.functional.normalize(codebook, dim=-1)


def nearest_angles(codewords: Tensor) -> Tensor:
    """The angle, in degrees, from each unit vector (V, d) to the nearest other: (V,)."""
    other = codewords[search.nearest(codewords, codewords, k=2)[:, 1]]  # the first is a codeword itself, or its double
    return (codewords * other).sum(1).clamp(-1, 1).acos().rad2deg()


def usage_plot(tokens: Tensor, codebook_size: int) -> Image.Image:
    """How often each codeword occurs in (h, w, G) tokens, most used first, a line a group."""
    from matplotlib import colormaps

    with style():
        figure, axes = _figure()
        positions, few = tokens[:, :, 0].numel(), tokens.shape[2] <= len(COLOURS)
        for group in range(tokens.shape[2]):
            counts = np.sort(np.unique(tokens[:, :, group].numpy(), return_counts=True)[1])[::-1]
            # more groups than colours are told apart by their order from dark to light
            colour = COLOURS[group] if few else colormaps["viridis"](group / (tokens.shape[2] - 1))
            ranks = np.arange(1, len(counts) + 1)
            axes.step(ranks, counts / positions, where="mid", color=colour, linewidth=1.2, label=f"group {group + 1}")
        axes.axhline(1 / codebook_size, color="#8c8c8c", linestyle="--", linewidth=1)
        axes.annotate(
            "all alike", (0.02, 1 / codebook_size), xycoords=("axes fraction", "data"), va="bottom", fontsize=8
        )
        axes.set(xscale="log", yscale="log", xlabel="codewords, most used first", ylabel="share of positions")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")  # powers of ten would be set as mathematics, which `style` turns off
        axes.legend(fontsize=7, ncols=-(-tokens.shape[2] // 8), frameon=False)
        axes.set_title("usage of the codewords in this image")
        return _image(figure)


def sphere_plot(quantizer: Quantizer, tokens: Tensor | None = None) -> Image.Image | None:
    """Where the codewords lie: on a line, a circle or a sphere for d <= 3, else how far they are from each other.

    Args:
        quantizer: one with a codebook; of others there is no image, None.
        tokens: (h, w, G): codewords that occur there are blue, the rest grey.
    """
    codewords = directions(quantizer)
    if codewords is None:
        return None
    size, d = codewords.shape
    used = torch.zeros(size, dtype=torch.bool)
    if tokens is not None:
        used[tokens.flatten()] = True
    with style():
        if d > 3:
            figure, axes = _figure()
            some = codewords[:: math.ceil(size / _MAX_ANGLES)]
            axes.hist(nearest_angles(some).numpy(), bins=40, color=COLOURS[0])
            axes.set(xlabel="angle to the nearest codeword, degrees", ylabel="codewords")
            axes.set_title(f"{len(some):,} codewords on the sphere in {d} dimensions")
            return _image(figure)
        step = math.ceil(size / _MAX_PLOTTED)
        points = codewords[::step].numpy()
        colours = np.where(used[::step].numpy(), COLOURS[0], "#b4b8bd")
        figure, axes = _figure("3d" if d == 3 else None)
        if d == 1:
            axes.vlines(points[:, 0], 0, 1, color=colours, linewidth=1)
            axes.set(yticks=[], xlabel="value")
        elif d == 2:
            axes.scatter(*points.T, c=colours, s=14)
            axes.set(aspect="equal", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
        else:
            axes.scatter(*points.T, c=colours, s=10, depthshade=True)
            axes.set_box_aspect((1, 1, 1))
        axes.set_title(f"{len(points):,} codewords" + ("; blue: in this image" if tokens is not None else ""))
        return _image(figure)


def _figure(projection: str | None = None) -> tuple[Figure, Any]:  # axes of 3d have methods of their own
    from matplotlib.figure import Figure  # not pyplot, whose figures stay in memory and are not for threads

    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    return figure, figure.add_subplot(projection=projection)


def _image(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return Image.open(file).convert("RGB")
