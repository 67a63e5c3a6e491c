"""The loss is the weighted sum of its terms."""

import pytest
import torch
from torch import nn

from gsqtok.tokenizer import TokenizerOutput
from gsqtok.training import LossConfig
from gsqtok.training import objective as module
from gsqtok.training.objective import Objective


@pytest.fixture
def out():
    torch.manual_seed(0)
    reconstruction = torch.randn(2, 3, 8, 8, requires_grad=True)
    terms = {"commitment": torch.tensor(0.5), "entropy": torch.tensor(-0.1)}
    return TokenizerOutput(reconstruction, None, None, None, torch.tensor(0.7, requires_grad=True), terms)


@pytest.mark.parametrize(("kind", "error"), [("l2", torch.square), ("l1", torch.abs)])
def test_terms_add_up(out, kind, error):
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    config = LossConfig(reconstruction=kind, reconstruction_weight=3.0, perceptual_weight=0, quantizer_weight=0.25)
    total, terms = Objective(config)(out, images)
    expected = error(out.reconstruction.detach().double() - images).mean()
    assert float(terms["reconstruction"]) == pytest.approx(float(expected), rel=1e-6)
    assert total.item() == pytest.approx(3 * float(expected) + 0.25 * 0.7, rel=1e-6)
    assert float(terms["total"]) == total.item()
    assert set(terms) == {"total", "reconstruction", "commitment", "entropy"}
    assert not any(term.requires_grad for term in terms.values())
    total.backward()
    assert float(out.quantizer_loss.grad) == 0.25
    assert out.reconstruction.grad.abs().sum() > 0


def test_perceptual_term(out, monkeypatch):
    class Largest(nn.Module):
        def forward(self, reconstruction, images):
            return (reconstruction - images).abs().max()

    asked = []
    monkeypatch.setattr(module, "build_perceptual", lambda *arguments: asked.append(arguments) or Largest())
    images = torch.zeros(2, 3, 8, 8)
    total, terms = Objective(LossConfig(perceptual="timm:x", perceptual_weight=0.5, perceptual_file="f"))(out, images)
    assert asked == [("timm:x", "f")]
    largest = float(out.reconstruction.detach().abs().max())
    assert float(terms["perceptual"]) == pytest.approx(largest)
    assert total.item() == pytest.approx(float(terms["reconstruction"]) + 0.5 * largest + 0.7, rel=1e-6)


def test_no_perceptual_network_at_weight_0(monkeypatch):
    monkeypatch.setattr(module, "build_perceptual", lambda *_: pytest.fail("a network was built"))
    assert Objective(LossConfig(perceptual_weight=0)).perceptual is None


def test_officially_the_perceptual_network_gets_zero_to_one(out, monkeypatch):
    class Seen(nn.Module):
        def forward(self, reconstruction, images):
            self.pair = reconstruction.detach(), images
            return reconstruction.mean()

    monkeypatch.setattr(module, "build_perceptual", lambda *_: Seen())
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    for official in (False, True):
        objective = Objective(LossConfig(perceptual="timm:x"), official)
        objective(out, images)
        for seen, given in zip(objective.perceptual.pair, (out.reconstruction.detach(), images), strict=True):
            torch.testing.assert_close(seen, (given + 1) / 2 if official else given)
