"""What is kept of a codebook between searches, and that no change of it goes unnoticed."""

import pytest
import torch

from gsqtok.search import codebook as module
from gsqtok.search import nearest
from gsqtok.search.codebook import Codebook, kept


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(module, "_kept", [])


@pytest.mark.parametrize("d", [1, 2, 3, 16])
def test_every_change_of_a_codebook_counts(d):
    """Also those that a tensor's version counter does not see."""
    g = torch.Generator().manual_seed(0)
    latents, codebook = torch.randn(600, d, generator=g), torch.randn(2000, d, generator=g)
    shifted = codebook.roll(1, dims=0)
    before = nearest(latents, codebook)
    assert torch.equal(nearest(latents, codebook), before)
    version = codebook._version
    codebook.data.copy_(shifted)
    assert codebook._version == version
    after = nearest(latents, codebook)
    assert torch.equal(codebook[after], shifted.roll(-1, dims=0)[before])
    codebook.numpy()[:] = shifted.roll(-1, dims=0).numpy()
    assert torch.equal(nearest(latents, codebook), before)
    codebook.data[7] = float("nan")
    with pytest.raises(ValueError, match="codebook: 1 of 2000 rows"):
        nearest(latents, codebook)


def test_equal_values_are_one_codebook_and_other_dtypes_are_not():
    rows = torch.randn(50, 4)
    first = kept(rows)
    assert not first.known
    assert kept(rows.T.contiguous().T) is first
    assert first.known
    assert kept(rows.double()) is not first
    assert kept(rows[:49]) is not first
    rows.zero_()
    assert first.rows.any()


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST", 3)
    books = [kept(torch.full((2, 2), float(i))) for i in range(4)]
    assert kept(torch.full((2, 2), 1.0)) is books[1]
    assert kept(torch.full((2, 2), 4.0)) is not None
    assert [book.rows[0, 0].item() for book in module._kept] == [4, 1, 3]
    monkeypatch.setattr(module, "NUMBERS", 10)
    kept(torch.zeros(3, 2))
    assert [len(book.rows) for book in module._kept] == [3, 2]
    kept(torch.zeros(20, 2))
    assert module._kept == []


def test_preparations_are_made_once_for_each_set_of_options():
    made = []

    def prepare(rows, *options):
        made.append(options)
        return len(made)

    book = Codebook(torch.zeros(2, 2))
    assert [book.prepared(prepare, option) for option in ("a", "b", "a")] == [1, 2, 1]
    assert made == [("a",), ("b",)]
