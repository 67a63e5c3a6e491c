"""Draw docs/images/limits.png: predicted and measured error of spherical codes over dimension and size.

python docs/plots/limits.py        # some minutes on two CPU cores; needs matplotlib
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from gsqtok.quantizers import GSQ
from gsqtok.quantizers.leech import leech_sphere
from gsqtok.quantizers.sphere import bsq_error, fibonacci_sphere, random_code_error, random_sphere, sphere_bound
from gsqtok.search import nearest

DIMS = (2, 3, 4, 8, 16, 24)
IMAGE = Path(__file__).parents[1] / "images" / "limits.png"


def measured(codebook: torch.Tensor, latents: int = 4000) -> float:
    """Mean spherical error from uniform points to their nearest codeword's direction."""
    target = random_sphere(codebook.shape[1], latents, seed=77)
    codebook = F.normalize(codebook, dim=-1)
    return (codebook[nearest(target, codebook)] - target).double().square().sum(-1).mean().item()


def trained(d: int, codewords: int, steps: int = 400) -> torch.Tensor:
    """GSQ's codebook after training by its own loss on uniform latents, 16 of them a codeword and step."""
    torch.manual_seed(0)
    quantizer = GSQ(d, codebook_size=codewords).train()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        quantizer(torch.randn(16 * codewords, d)).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return quantizer.codebook.detach()


def main() -> None:
    """Print the table and draw the image."""
    figure, axis = plt.subplots(figsize=(8, 5.2))
    bits = range(2, 19)
    print("| d | V | bound | random, predicted | random, measured | GSQ trained | Fibonacci |")
    print("|---|---|---|---|---|---|---|")
    for number, d in enumerate(DIMS):
        color = f"C{number}"
        axis.plot(bits, [random_code_error(d, 2**b) for b in bits], color=color, label=f"d = {d}")
        axis.plot(bits, [sphere_bound(d, 2**b) for b in bits], color=color, linestyle="--", linewidth=0.9)
        for b in (4, 8, 10, 14):
            random = measured(random_sphere(d, 2**b))
            axis.plot(b, random, "o", color=color, markersize=4)
            learnt = fibonacci = None
            if b <= 10:
                learnt = measured(trained(d, 2**b))
                axis.plot(b, learnt, "^", color=color, markersize=5)
            if d <= 4:
                fibonacci = measured(fibonacci_sphere(d, 2**b))
                axis.plot(b, fibonacci, "x", color=color, markersize=5)
            errors = (sphere_bound(d, 2**b), random_code_error(d, 2**b), random, learnt, fibonacci)
            print(f"| {d} | {2**b} | {' | '.join('' if x is None else f'{x:.3g}' for x in errors)} |", flush=True)
    leech = leech_sphere()
    axis.plot(
        17.58, measured(leech, 2000), "*", color="C5", markersize=11, markeredgecolor="black", label="Leech, d = 24"
    )
    more = [d for d in DIMS if d > 2]
    corners = [bsq_error(d) for d in more]
    axis.plot(more, corners, "s-", color="black", markersize=4, linewidth=0.5, label="BSQ, d bits")
    axis.plot([], [], "o", color="grey", markersize=4, label="random, measured")
    axis.plot([], [], "^", color="grey", markersize=5, label="GSQ, trained")
    axis.plot([], [], "x", color="grey", markersize=5, label="Fibonacci lattice")
    axis.plot([], [], "-", color="grey", label="random, predicted")
    axis.plot([], [], "--", color="grey", label="sphere bound")
    axis.set(
        xlabel="bits a token, log2 V", ylabel="spherical error to the nearest codeword", yscale="log", xlim=(1.5, 25)
    )
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(IMAGE, dpi=110)


if __name__ == "__main__":
    main()
