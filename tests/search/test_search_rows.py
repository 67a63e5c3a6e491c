"""Scaling of rows to length 1, against fractions."""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gsqtok.search import nearest, normalize

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def exact_unit(row: list[float], order: int) -> list[float]:
    """By integers: the square root of a fraction to 200 bits."""
    values = [Fraction(x) for x in row]
    total = sum(abs(x) ** order for x in values)
    if order == 1:
        return [float(x / total) for x in values]
    return [math.copysign(math.isqrt(int((x * x / total) * 2**400)) / 2.0**200, x) for x in values]


@given(row=st.lists(FLOAT32, min_size=1, max_size=6), order=st.sampled_from([1, 2]))
@settings(max_examples=300, deadline=None)
def test_every_finite_row_gets_length_one(row, order):
    rows = torch.tensor([row])
    found = normalize(rows, order=float(order))
    if not rows.any():
        assert not found.any()
    else:
        torch.testing.assert_close(found[0], torch.tensor(exact_unit(row, order)), rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_keep_theirs_and_their_range(dtype):
    extremes = torch.finfo(dtype)
    for size in (extremes.max, extremes.tiny, 1.0):
        found = normalize(torch.tensor([[[size, -size]]], dtype=dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found, torch.tensor([[[0.5**0.5, -(0.5**0.5)]]], dtype=dtype))


def test_the_search_finds_what_was_normalised():
    """A latent whose square overflows float32: the codeword of its direction, not the first."""
    latents = torch.tensor([[0.0, 0.0, 3e19], [0.0, 2e-30, 0.0], [3e38, 3e38, 0.0]])
    codebook = torch.eye(3)
    assert nearest(latents, codebook).tolist() == nearest(normalize(latents), codebook).tolist() == [2, 1, 0]


def test_gradient_is_that_of_the_plain_formula_and_none_where_the_row_is_zero():
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    weights = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)).double()
    for order in (1.0, 2.0):
        ours = torch.autograd.grad((normalize(rows, order=order) * weights).sum(), rows)[0]
        plain = torch.autograd.grad((F.normalize(rows, p=order, dim=-1) * weights).sum(), rows)[0]
        torch.testing.assert_close(ours, plain)
    for short in (0.0, 1e-13, 1e-45):
        row = torch.tensor([[short, 0.0, 0.0]], requires_grad=True)
        normalize(row).sum().backward()
        assert row.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_nan_and_infinity_stay_visible():
    assert normalize(torch.tensor([[math.nan, 1.0], [math.inf, 1.0]])).isnan().any(dim=1).all()
