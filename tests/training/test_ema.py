"""The average against its recurrence in float64."""

import pytest
import torch
from torch import nn

from gsqtok.training.ema import Average


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("statistic", torch.randn(5))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_closed_form(decay):
    torch.manual_seed(0)
    model = Model()
    average = Average(model, decay)
    expected = {}
    for step in range(40):
        with torch.no_grad():
            model.weight.add_(torch.randn(3, 4))
            model.statistic.add_(torch.randn(5))
            model.count.add_(1)
        average.update_parameters(model)
        rate = min(decay, (1 + step) / (10 + step))  # torch takes the first call as a plain copy
        for name in ("weight", "statistic"):
            now = getattr(model, name).detach().double()
            expected[name] = now if step == 0 else rate * expected[name] + (1 - rate) * now
    torch.testing.assert_close(average.module.weight.detach().double(), expected["weight"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(average.module.statistic.double(), expected["statistic"], rtol=1e-5, atol=1e-5)
    assert average.module.count == 40
    assert average.module.count.dtype == torch.int64


def test_leaves_the_model_alone():
    model = Model()
    average = Average(model, 0.9)
    before = model.weight.detach().clone()
    average.update_parameters(model)
    with torch.no_grad():
        model.weight.add_(1)
    average.update_parameters(model)
    torch.testing.assert_close(model.weight.detach(), before + 1)
    assert not torch.equal(average.module.weight, model.weight)


def test_a_constant_decay_keeps_what_it_started_from():
    torch.manual_seed(0)
    model = Model()
    start = model.weight.detach().double()
    average = Average(model, 0.9, rising=False)
    with torch.no_grad():
        model.weight.zero_()
    for _ in range(5):
        average.update_parameters(model)
    torch.testing.assert_close(average.module.weight.detach().double(), 0.9**5 * start, rtol=1e-5, atol=1e-6)
    assert average.module.count == 0
