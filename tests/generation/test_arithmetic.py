"""Numbers that are the same in any order, and close to those of floating point."""

import math
from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

from gsqtok.generation.arithmetic import FixedPoint, FloatingPoint, exponentials, frequencies

EXACT = FixedPoint()


def test_the_table_of_exponentials():
    table = exponentials(64, 20, 20)
    assert table.tolist() == [round(2**20 * math.exp(-i / 64)) for i in range(20 * 64 + 1)]


def test_a_product_is_exact_and_so_the_order_of_its_terms_is_free():
    torch.manual_seed(0)
    x, weight = 50 * torch.randn(3, 200).double(), EXACT.weight(torch.randn(5, 200).double())
    out = EXACT.linear(x, weight)
    rounded = (x * 2**12).round() / 2**12
    for row in range(3):
        for column in range(5):
            terms = zip(rounded[row].tolist(), weight[column].tolist(), strict=True)
            whole = sum((Fraction(a) * Fraction(b) for a, b in terms), Fraction(0))
            assert out[row, column].item() == round(whole * 2**12) / 2**12
    order = torch.randperm(200)
    assert torch.equal(EXACT.linear(x[:, order], weight[:, order]), out)
    assert torch.equal(torch.cat([EXACT.linear(x[i : i + 1], weight) for i in range(3)]), out)


def test_a_sum_of_too_many_terms_is_refused():
    with pytest.raises(ValueError, match="4096 terms at most"):
        EXACT.linear(torch.zeros(1, 4097).double(), torch.zeros(1, 4097).double())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "m"), [(7, 7), (1, 7), (3, 7)])
def test_attention_is_pytorch_s_up_to_rounding(causal, n, m):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, n, 64).double(), torch.randn(2, 3, m, 64).double(), torch.randn(2, 3, m, 64).double()
    mask = torch.ones(n, m, dtype=torch.bool).tril(m - n) if causal else None
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(FloatingPoint().attend(q, k, v, causal), expected)
    torch.testing.assert_close(EXACT.attend(q, k, v, causal), expected, atol=6e-3, rtol=0)


def test_normalisation_and_rotation_are_close_to_floating_point():
    torch.manual_seed(0)
    x, weight, angles = 3 * torch.randn(4, 5, 64).double(), torch.rand(64).double(), 10 * torch.rand(5, 32).double()
    torch.testing.assert_close(EXACT.norm(x, weight), FloatingPoint().norm(x, weight), atol=1e-3, rtol=0)
    torch.testing.assert_close(EXACT.rotate(x, angles), FloatingPoint().rotate(x, angles), atol=1e-3, rtol=0)
    assert torch.allclose(EXACT.rotate(x, angles).norm(dim=-1), x.norm(dim=-1), atol=1e-2)


def test_frequencies_are_whole_and_proportional_to_probabilities():
    torch.manual_seed(0)
    logits = 2 * torch.randn(10, 300).double()
    table = frequencies(logits)
    assert torch.equal(table, table.round())
    torch.testing.assert_close(table / table.sum(-1, keepdim=True), logits.softmax(-1), rtol=0.02, atol=1e-6)
