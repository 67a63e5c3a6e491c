"""Sums per codeword against loops; what ranks share is tested in tests/contract (two processes equal one)."""

import torch

from gsqtok.quantizers.statistics import clusters


def test_counts_and_sums():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [torch.nan, 0.0], [5.0, 6.0]])
    found = clusters(rows, torch.tensor([1, 1, -1, 3]), 5)
    assert found.counts.tolist() == [0, 2, 0, 1, 0]
    assert found.sums.tolist() == [[0, 0], [4, 6], [0, 0], [5, 6], [0, 0]]


def test_samples_are_valid_rows():
    torch.manual_seed(0)
    rows = torch.arange(20.0).view(10, 2)
    indices = torch.arange(10).where(torch.arange(10) < 5, -1)
    found = clusters(rows, indices, 1000)
    assert 300 < found.sampled.sum() < 700, "half the draws hit a row that counts"
    valid = {tuple(row) for row in rows[:5].tolist()}
    assert {tuple(row) for row in found.samples[found.sampled].tolist()} == valid


def test_no_rows():
    found = clusters(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), 4)
    assert found.counts.tolist() == [0, 0, 0, 0]
    assert not found.sampled.any()
