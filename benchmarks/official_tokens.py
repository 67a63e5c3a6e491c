"""How far tokens of the paper's own arithmetic agree with the nearest codeword, and with themselves.

    python benchmarks/official_tokens.py [--codewords 8192] [--latents 4096] [--json FILE]

The official search is a matrix of distances |z|^2 + |c|^2 - 2 z.c in float32, under autocast with z.c in bfloat16, and
a random draw among codewords of equal distance, at evaluation too. Random unit latents and codewords, seed 0. Columns:

- nearest: share of latents whose official token is the nearest codeword (`gsqtok.search.nearest`, exact);
- drawn twice: share of latents that get the same token in two runs of the official search;
- without |z|^2: share that keep their token when the same sum leaves out |z|^2, which is equal for all codewords, and
  both take the first of equals: what another order of summing does;
- equals: how many codewords share the least distance, on average.
"""

import argparse

import torch
from table import Table, add_json
from torch import Tensor
from torch.nn import functional as F

from gsqtok.search import nearest

COLUMNS = {
    "d": ("d", ""),
    "arithmetic": ("arithmetic", ""),
    "nearest": ("nearest", ".1%"),
    "twice": ("drawn twice", ".1%"),
    "shorter": ("without |z|^2", ".1%"),
    "equals": ("equals", ".1f"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codewords", type=int, default=8192)
    parser.add_argument("--latents", type=int, default=4096)
    add_json(parser)
    args = parser.parse_args()
    torch.manual_seed(0)
    table = Table(COLUMNS)
    for d in (2, 4, 8, 16):
        z, c = (F.normalize(torch.randn(count, d), dim=1) for count in (args.latents, args.codewords))
        exact = nearest(z, c)
        for precision in (torch.float32, torch.bfloat16):
            products = (z.to(precision) @ c.to(precision).T).float()
            distances = z.square().sum(1, keepdim=True) + c.square().sum(1) - 2 * products
            equals = distances == distances.amin(1, keepdim=True)
            once, twice = (torch.rand(equals.shape).where(equals, -1).argmax(1) for _ in range(2))
            shorter = (c.square().sum(1) - 2 * products).argmin(1)
            row = {"d": d, "arithmetic": str(precision)[6:], "equals": equals.sum(1).double().mean().item()}
            row |= {"nearest": _share(once, exact), "twice": _share(once, twice)}
            table.add(row | {"shorter": _share(shorter, distances.argmin(1))})
    table.write(args.json, "cpu", codewords=args.codewords, latents=args.latents, seed=0)


def _share(ours: Tensor, theirs: Tensor) -> float:
    return (ours == theirs).double().mean().item()


if __name__ == "__main__":
    main()
