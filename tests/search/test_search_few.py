"""The search by one product against brute force, of one codebook and of groups, and when it is taken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_truth import SCALES, nearest_by_distance, rows_of_kind

from gsqtok.search import chunked, few, nearest
from gsqtok.search.codebook import Codebook


def search(latents, codebook, metric):
    return few.nearest(latents, Codebook(codebook), metric)


@given(
    n=st.integers(1, 40),
    v=st.integers(1, 200),
    d=st.integers(2, 9),
    kind=st.sampled_from(["uniform", "lattice", *SCALES]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_euclidean_by_distance_then_index(n, v, d, kind, seed):
    latents, codebook = rows_of_kind(kind, n, v, d, seed)
    assert torch.equal(search(latents, codebook, "euclidean"), nearest_by_distance(latents, codebook)[:, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("d", [3, 8])
def test_groups_are_searched_as_one_by_one(d, metric, dtype):
    """With zero rows, duplicates across which the lowest index wins, and groups of quite different size."""
    g = torch.Generator().manual_seed(d)
    latents, codebook = torch.randn(90, 3, d, generator=g), torch.randn(3, 70, d, generator=g)
    latents[::20], codebook[:, ::9], codebook[1] = 0, codebook[:, 1::9][:, :8], 1000 * codebook[1]
    latents, codebook = latents.to(dtype), codebook.to(dtype)
    truth = [chunked.nearest(latents[:, i].contiguous(), Codebook(codebook[i]), metric) for i in range(3)]
    assert torch.equal(search(latents, codebook, metric), torch.stack(truth, dim=1))
    assert torch.equal(nearest(latents, codebook, metric=metric), torch.stack(truth, dim=1))
    assert torch.equal(search(latents[:, 0].contiguous(), codebook[0], metric), truth[0])


def test_only_the_uncertain_are_compared_with_all(monkeypatch):
    g = torch.Generator().manual_seed(0)
    latents, codebook = torch.randn(1000, 4, generator=g), torch.randn(256, 4, generator=g)
    settled, plain = [], few.Few._settled

    def watched(self, latents, codebook, near, space):
        settled.append(near.sum())
        return plain(self, latents, codebook, near, space)

    monkeypatch.setattr(few.Few, "_settled", watched)
    for metric in ("cosine", "euclidean"):
        search(latents, codebook, metric)
        assert sum(settled) <= 4
    settled.clear()
    twice = codebook.repeat(2, 1)  # a tie for every latent
    found = search(latents, twice, "cosine")
    assert 2000 <= sum(settled) <= 2004
    assert torch.equal(found, search(latents, codebook, "cosine"))
    monkeypatch.setattr(few, "DISTANCES", 100)  # left to the search in blocks
    assert torch.equal(search(latents, twice, "cosine"), found)


def test_blocks_of_latents_and_the_last_smaller_one(monkeypatch):
    monkeypatch.setattr(few, "SCORES", 1 << 12)
    g = torch.Generator().manual_seed(2)
    latents, codebook = torch.randn(101, 2, 4, generator=g), torch.randn(2, 50, 4, generator=g)
    for metric in ("cosine", "euclidean"):
        truth = [chunked.nearest(latents[:, i].contiguous(), Codebook(codebook[i]), metric) for i in range(2)]
        assert torch.equal(search(latents, codebook, metric), torch.stack(truth, dim=1))


def test_nearest_takes_it_for_few_codewords(monkeypatch):
    taken, plain = [], few.nearest
    monkeypatch.setattr(few, "nearest", lambda rows, *others: taken.append(tuple(rows.shape)) or plain(rows, *others))
    nearest(torch.randn(100, 5), torch.randn(50, 5))
    nearest(torch.randn(100, 3, 5), torch.randn(3, 50, 5))
    nearest(torch.randn(100, 2), torch.randn(50, 2), metric="euclidean")
    assert taken == [(100, 5), (100, 3, 5), (100, 2)]
    nearest(torch.randn(100, 2), torch.randn(50, 2))  # by angle
    nearest(torch.randn(100, 3, 1), torch.randn(3, 50, 1))  # by value
    nearest(torch.randn(100, 5), torch.randn(50, 5), k=2)
    nearest(torch.randn(4, 16), torch.randn(few.CODEWORDS + 1, 16))
    assert len(taken) == 3
