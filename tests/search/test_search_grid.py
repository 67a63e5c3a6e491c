"""The search by a grid against all distances, for codebooks of every kind, and when it is taken."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gsqtok.search import codebook as kept_codebooks
from gsqtok.search import grid, nearest, reference
from gsqtok.search.grid import Grid


def rows_of(kind: str, n: int, v: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    latents, codebook = torch.randn(n, d, generator=g), torch.randn(v, d, generator=g)
    if kind == "lattice":  # full of ties and duplicates
        latents, codebook = (2 * latents).round(), codebook.round()
        codebook[~codebook.any(dim=1)] = 1
    elif kind == "bisector":
        latents = F.normalize(codebook, dim=1)[torch.randint(v, (n, 2), generator=g)].mean(dim=1)
    elif kind == "at codewords":
        latents = 3 * codebook[torch.randint(v, (n,), generator=g)]
    elif kind == "one side":
        codebook[:, 0] = codebook[:, 0].abs() + 2
    elif kind == "scales":
        latents, codebook = latents * 1e-38, codebook * 10.0 ** torch.randint(-30, 30, (v, 1), generator=g)
    return latents, codebook


@pytest.mark.parametrize("d", [3, 4])
@given(
    kind=st.sampled_from(["uniform", "lattice", "bisector", "at codewords", "one side", "scales"]),
    v=st.integers(1, 400),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=8, deadline=None)
def test_as_by_all_distances(d, kind, v, seed):
    latents, codebook = rows_of(kind, 500, v, d, seed)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * d)  # with zero, and the edges of cells
    latents = torch.cat([latents, corners, corners * torch.tensor([1.0, *[0.025] * (d - 1)])])
    of_sphere = Grid.of(codebook)
    assert of_sphere is not None
    assert torch.equal(of_sphere.nearest(latents), reference.nearest(latents, codebook, "cosine"))


def test_none_for_zero_codewords_and_long_lists(monkeypatch):
    codebook = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    assert Grid.of(codebook.index_fill(0, torch.tensor([7]), 0.0)) is None
    assert Grid.of(torch.tensor([[1.0, 1.0, 1.0]]) + 1e-4 * codebook) is None


@pytest.mark.parametrize("zero", [False, True])
def test_nearest_takes_it_once_a_codebook_stays(monkeypatch, zero):
    monkeypatch.setattr(grid, "STAYS", 3000)
    monkeypatch.setattr(grid, "LATENTS", 300)
    monkeypatch.setattr(kept_codebooks, "_kept", [])
    taken, plain = [], Grid.nearest
    monkeypatch.setattr(Grid, "nearest", lambda self, rows: taken.append(len(rows)) or plain(self, rows))
    g = torch.Generator().manual_seed(1)
    latents, codebook = torch.randn(1000, 4, generator=g), torch.randn(700, 4, generator=g)
    codebook[5] *= not zero
    truth = reference.nearest(latents, codebook, "cosine")
    for _ in range(4):
        assert torch.equal(nearest(latents, codebook), truth)
    assert taken == ([] if zero else [1000, 1000])
    nearest(latents, codebook, metric="euclidean")
    nearest(latents, codebook, k=2)
    assert len(taken) == (0 if zero else 2)
