"""The search by a tree against brute force, and what it leaves to the search in blocks."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from search_truth import SCALES, nearest_by_distance, rows_of_kind

from gsqtok.search import chunked, nearest, tree
from gsqtok.search.codebook import Codebook


@given(
    n=st.integers(1, 40),
    v=st.integers(1, 200),
    d=st.integers(2, 8),
    k=st.integers(1, 5),
    kind=st.sampled_from(["uniform", "lattice", *SCALES]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=120, deadline=None)
def test_euclidean_by_distance_then_index(n, v, d, k, kind, seed):
    latents, codebook = rows_of_kind(kind, n, v, d, seed)
    k = min(k, v)
    found = tree.nearest(latents, Codebook(codebook), "euclidean", k)
    assert torch.equal(found.view(n, k), nearest_by_distance(latents, codebook, k))


@pytest.mark.parametrize("d", [3, 5, 8])
@pytest.mark.parametrize("k", [1, 4])
def test_cosine_as_in_blocks(d, k):
    g = torch.Generator().manual_seed(d)
    latents, codebook = torch.randn(300, d, generator=g), torch.randn(900, d, generator=g)
    latents[::50] = 0
    codebook[::9] = 2 * codebook[1::9]
    for rows in (codebook, codebook.index_fill(0, torch.tensor([5, 600]), 0.0)):
        book = Codebook(rows)
        assert torch.equal(tree.nearest(latents, book, "cosine", k), chunked.nearest(latents, book, "cosine", k))


@pytest.fixture
def left_to_blocks(monkeypatch):
    counts, plain = [], chunked.nearest

    def watched(latents, *others):
        counts.append(len(latents))
        return plain(latents, *others)

    monkeypatch.setattr(chunked, "nearest", watched)
    return counts


@pytest.mark.parametrize("d", [2, 3, 4, 8])
def test_uniform_latents_are_found_by_the_tree_and_far_ones_left_to_blocks(d, left_to_blocks):
    g = torch.Generator().manual_seed(0)
    latents, codebook = (F.normalize(torch.randn(n, d, generator=g)) for n in (2000, 8192))
    tree.nearest(latents, Codebook(codebook), "euclidean")
    assert sum(left_to_blocks) <= 1
    left_to_blocks.clear()
    centre_and_outside = torch.cat([torch.zeros(3, d), 10 * latents[:5]])
    tree.nearest(centre_and_outside, Codebook(codebook), "euclidean")
    assert left_to_blocks == [8]
    found = tree.nearest(10 * latents, Codebook(codebook), "euclidean")
    assert left_to_blocks == [8, 2000]
    assert torch.equal(found, chunked.nearest(10 * latents, Codebook(codebook), "euclidean"))


def test_nearest_takes_the_tree_where_it_pays(monkeypatch):
    taken, plain = [], tree.nearest
    monkeypatch.setattr(tree, "nearest", lambda *arguments: taken.append(len(arguments[0])) or plain(*arguments))
    g = torch.Generator().manual_seed(1)
    latents, codebook = torch.randn(1100, 4, generator=g), torch.randn(3000, 4, generator=g)
    few = nearest(latents[:20], codebook)  # a tree would take longer to build
    assert taken == []
    assert torch.equal(nearest(latents[:20], codebook), few)  # it has come twice, and may come again
    assert torch.equal(nearest(latents, codebook + 1, k=2)[:, 0], nearest(latents, codebook + 1))
    assert taken == [20, 1100, 1100]
    nearest(latents, torch.randn(200, 4, generator=g))
    for d in (9, 2):  # too many dimensions; a circle
        nearest(torch.randn(1100, d, generator=g), torch.randn(3000, d, generator=g))
    assert taken == [20, 1100, 1100]
