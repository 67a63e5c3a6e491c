import numpy as np
import pytest
import torch

from gsqtok.losses import reconstruction_loss


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 8, 8, generator=generator), torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1


@pytest.mark.parametrize(("kind", "power"), [("l2", 2), ("l1", 1)])
def test_equals_numpy(pair, kind, power):
    a, b = (x.double().numpy() for x in pair)
    assert reconstruction_loss(*pair, kind).item() == pytest.approx(np.mean(np.abs(a - b) ** power), rel=1e-6)


def test_log_is_psnr_up_to_a_factor(pair):
    a, b = (x.double().numpy() for x in pair)
    mse = np.square(a - b).mean(axis=(1, 2, 3))
    psnr = 10 * np.log10(4 / mse)  # values span 2
    expected = np.log(4) - np.log(10) / 10 * psnr.mean()
    assert reconstruction_loss(*pair, "log").item() == pytest.approx(expected, abs=2e-3)


def test_l2_is_the_default(pair):
    assert reconstruction_loss(*pair) == reconstruction_loss(*pair, "l2")


@pytest.mark.parametrize("kind", ["l2", "l1", "log"])
def test_float32_whatever_comes_in(pair, kind):
    half = [x.bfloat16() for x in pair]
    expected = reconstruction_loss(half[0].float(), half[1].float(), kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = reconstruction_loss(*half, kind)
    assert value.dtype == torch.float32
    assert value == expected


def test_gradient(pair):
    reconstruction = pair[0].clone().requires_grad_()
    reconstruction_loss(reconstruction, pair[1]).backward()
    torch.testing.assert_close(reconstruction.grad, 2 * (pair[0] - pair[1]) / pair[0].numel())


def test_bad_input(pair):
    with pytest.raises(ValueError, match="'l1' or 'log'"):
        reconstruction_loss(*pair, "huber")
    with pytest.raises(ValueError, match="differ in shape"):  # would broadcast in silence
        reconstruction_loss(pair[0], pair[1][:1])


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_an_empty_batch_loses_nothing(kind):
    """A rank may get one: its loss must not make that of all ranks NaN."""
    empty = torch.empty(0, 3, 8, 8, requires_grad=True)
    loss = reconstruction_loss(empty, torch.empty(0, 3, 8, 8), kind)
    assert loss == 0
    loss.backward()
