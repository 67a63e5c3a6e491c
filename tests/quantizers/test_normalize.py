"""Unit vectors of any length, against float64."""

import pytest
import torch

from gsqtok.quantizers.normalize import unit


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-10, 1.0, 1e10, 1e30, 1e37])
def test_any_length(scale, order):
    x = random(200, 5) * scale
    exact = x.double() / x.double().norm(p=order, dim=-1, keepdim=True)
    torch.testing.assert_close(unit(x, order).double(), exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_gradient(scale):
    x, gradient = random(200, 5) * scale, random(200, 5, seed=1)
    x.requires_grad_()
    (ours,) = torch.autograd.grad(unit(x), x, gradient)
    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(exact / exact.norm(dim=-1, keepdim=True), exact, gradient.double())
    torch.testing.assert_close(ours.double() * scale, expected * scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_no_length(order):
    x = torch.zeros(1, 3, requires_grad=True)
    assert torch.equal(unit(x, order), x)
    (gradient,) = torch.autograd.grad(unit(x, order), x, torch.tensor([[1.0, -2.0, 3.0]]))
    assert gradient.norm() < 10 * 14**0.5
    assert gradient.isfinite().all()
