"""Draw the images of docs/concepts.md: collapse.png, concentration.png and geometry.png in docs/images.

python docs/plots/concepts.py        # about a minute on two CPU cores; needs matplotlib
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from gsqtok.quantizers import GSQ
from gsqtok.quantizers.sphere import random_code_error, random_sphere
from gsqtok.search import nearest

IMAGES = Path(__file__).parents[1] / "images"


def usage(quantizer: GSQ, latents: torch.Tensor) -> float:
    """Share of the codewords that any of the latents chooses."""
    with torch.no_grad():
        return len(quantizer(latents).indices.unique()) / quantizer.codebook_size


def collapse() -> None:
    """Usage while a codebook trains on latents that stand still, by start and norm."""
    figure, axis = plt.subplots(figsize=(6, 3.6))
    generator = torch.Generator().manual_seed(0)
    held_out = torch.randn(65_536, 8, generator=generator)
    for init, norm in (("uniform", "none"), ("uniform", "l2"), ("sphere", "none"), ("sphere", "l2")):
        torch.manual_seed(0)
        quantizer = GSQ(8, codebook_size=1024, norm=norm, init=init).train()
        optimizer = torch.optim.AdamW(quantizer.parameters(), lr=1e-3, betas=(0.9, 0.99))
        curve = []
        for step in range(1001):
            if step % 50 == 0:
                curve.append((step, usage(quantizer, held_out)))
            quantizer(torch.randn(2048, 8, generator=generator)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"init {init}, norm {norm}: usage {curve[0][1]:.1%} at the start, {curve[-1][1]:.1%} after 1,000 steps")
        axis.plot(*zip(*curve, strict=True), label=f"start: {init}, norm: {norm}")
    axis.set(xlabel="step", ylabel="codewords used by 65,536 latents", ylim=(0, 1.05))
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(IMAGES / "collapse.png", dpi=110)


def concentration() -> None:
    """Cosines to all of 8,192 random codewords, and to the nearest, as d grows; and what groups keep."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for number, d in enumerate((2, 4, 8, 16, 64)):
        codebook, latents = random_sphere(d, 8192), random_sphere(d, 512, seed=1)
        cosines = latents @ codebook.T
        best = cosines.amax(1).mean().item()
        left.hist(cosines.flatten()[::16].numpy(), 100, (-1, 1), density=True, histtype="step", color=f"C{number}")
        left.plot([best], [0.02], "v", color=f"C{number}", label=f"d = {d}, nearest at {best:.3f}")
    left.set(xlabel="cosine of a latent to a codeword", ylabel="density", yscale="log", ylim=(0.01, 20))
    left.legend(fontsize=7, loc="upper left")
    groups = [1, 2, 4, 8, 16, 32]
    right.plot(groups, [random_code_error(64 // g, 8192) for g in groups], "o-")
    for g in groups:
        right.annotate(
            f"d = {64 // g}",
            (g, random_code_error(64 // g, 8192)),
            fontsize=7,
            xytext=(4, 4),
            textcoords="offset points",
        )
    right.set(
        xlabel="groups G of D = 64 channels, V = 8,192", ylabel="expected spherical error", xscale="log", yscale="log"
    )
    right.set_xticks(groups, [str(g) for g in groups])
    right.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(IMAGES / "concentration.png", dpi=110)


def geometry() -> None:
    """Cells of the same sixteen codewords in the plane, without and with l2 normalisation."""
    codebook = torch.randn(16, 2, generator=torch.Generator().manual_seed(3))
    axis_values = torch.linspace(-2.5, 2.5, 400)
    grid = torch.cartesian_prod(axis_values, axis_values)
    figure, panels = plt.subplots(1, 2, figsize=(8, 4))
    for panel, metric, title in zip(panels, ("euclidean", "cosine"), ("none", "l2"), strict=True):
        cells = nearest(grid, codebook, metric=metric).view(400, 400).T
        panel.imshow(cells, origin="lower", extent=(-2.5, 2.5, -2.5, 2.5), cmap="tab20", interpolation="nearest")
        panel.plot(*codebook.T, "ko", markersize=4)
        panel.add_patch(plt.Circle((0, 0), 1, fill=False, color="black", linewidth=0.8, linestyle=":"))
        panel.set(title=f"norm: {title}", xticks=[], yticks=[])
        print(f"norm {title}: {len(cells.unique())} of 16 codewords own a cell")
    figure.tight_layout()
    figure.savefig(IMAGES / "geometry.png", dpi=110)


if __name__ == "__main__":
    collapse()
    concentration()
    geometry()
