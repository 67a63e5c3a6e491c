"""FSQ against its paper's listing written out in numpy, hand-worked levels, and vector-quantize-pytorch."""

import math

import numpy as np
import pytest
import torch
from vector_quantize_pytorch import FSQ as Peer

from gsqtok.quantizers import FSQ
from gsqtok.quantizers.fsq import choose_levels


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [8, 6, 5], [3, 2, 4], [7, 5, 5, 5, 5]])
def test_codes_and_indices_of_the_listing(levels):
    latent = 2 * random(500, len(levels))
    z, count = latent.double().numpy(), np.array(levels)
    half = (count - 1) * (1 - 1e-3) / 2
    offset = np.where(count % 2 == 1, 0.0, 0.5)
    shift = np.where(count == 2, 0, np.tan(offset / half))  # of two levels the listing's leaves nearly only one
    bounded = np.tanh(z + shift) * half - offset
    digits = np.round(bounded) + count // 2
    basis = np.concatenate([[1], np.cumprod(count[:-1])])

    out = FSQ(len(levels), levels=levels).eval()(latent)
    np.testing.assert_allclose(out.quantized.numpy(), np.round(bounded) / (count // 2), atol=1e-6)
    np.testing.assert_array_equal(out.indices[:, 0].numpy(), (digits * basis).sum(-1))


def test_all_levels_are_reached_and_no_others():
    quantizer = FSQ(2, levels=[5, 4])
    out = quantizer(torch.linspace(-9, 9, 4001)[:, None].expand(-1, 2))
    assert out.quantized[:, 0].unique().tolist() == [-1, -0.5, 0, 0.5, 1]
    assert out.quantized[:, 1].unique().tolist() == [-1, -0.5, 0, 0.5], "an even number of levels is off by half a step"
    assert quantizer.decode(torch.tensor([[0]])).tolist() == [[-1, -1]]
    assert quantizer.decode(torch.tensor([[7]])).tolist() == [[0, -0.5]]  # 7 = 2 + 1 * 5


@pytest.mark.parametrize("levels", [2, 3, 500, 1000, 1001, 1002, 2000, 65_536])
def test_every_level_is_reached(levels):
    quantizer = FSQ(1, levels=[levels])
    latent = torch.atanh(torch.linspace(-1, 1, 32 * levels + 1, dtype=torch.float64).clamp(-1 + 1e-9, 1 - 1e-9))
    assert len(quantizer(latent[:, None].float()).indices.unique()) == levels
    with pytest.raises(ValueError, match="from 2 to 1048576 levels"):
        FSQ(1, levels=[2**20 + 1])


@pytest.mark.parametrize(("bits", "dim"), [(8, 8), (8, 4), (9, 3), (16, 6)])
def test_normal_latents_carry_most_of_the_bits(bits, dim):
    quantizer = FSQ(dim, target_bits=bits)
    out = quantizer(random(200_000, dim))
    carried = 0.0  # channels are independent, so their entropies add
    for channel in range(dim):
        share = out.quantized[:, channel].unique(return_counts=True)[1] / 200_000
        carried -= (share * share.log2()).sum().item()
    assert carried > 0.9 * quantizer.bits


def test_same_grid_as_vector_quantize_pytorch():
    """Same codes and indices. Its squashing differs a little (atanh for the paper's tan, 1 + eps for 1 - eps)."""
    peer = Peer(levels=[8, 5, 5, 5])
    quantizer = FSQ(4, levels=[8, 5, 5, 5])
    indices = torch.arange(1000)
    torch.testing.assert_close(quantizer.decode(indices[:, None]), peer.indices_to_codes(indices))
    latent = random(1, 4000, 4)
    _, theirs = peer(latent)
    same = (quantizer(latent).indices[..., 0] == theirs).float().mean()
    assert same > 0.95


def test_gradient_is_that_of_the_squashing():
    quantizer = FSQ(3, levels=[5, 5, 4])
    latent = random(20, 3).requires_grad_()
    quantizer(latent).quantized.sum().backward()
    other = latent.detach().clone().requires_grad_()
    (quantizer.bound(other) / torch.tensor([2, 2, 2])).sum().backward()
    torch.testing.assert_close(latent.grad, other.grad)


@pytest.mark.parametrize(
    ("bits", "channels"), [(8, 3), (10, 4), (12, 5), (14, 5), (16, 6), (18, 6), (18, 8), (6, 6), (9.5, 3), (36, 12)]
)
def test_levels_chosen_for_bits(bits, channels):
    levels = choose_levels(bits, channels)
    assert len(levels) == channels
    assert max(levels) - min(levels) <= 1
    step = math.log2(min(levels) + 1) - math.log2(min(levels))
    assert abs(sum(map(math.log2, levels)) - bits) <= step / 2 + 1e-9
    assert FSQ(2 * channels, groups=2, target_bits=bits).bits == pytest.approx(2 * sum(map(math.log2, levels)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either levels or target_bits"),
        ({"levels": [5, 5, 5, 5], "target_bits": 8}, "give either"),
        ({"levels": [5, 5]}, "must name the levels of 4 channels"),
        ({"levels": [5, 5, 5, 1]}, "from 2 to 1048576 levels"),
        ({"levels": [2**16] * 4}, "64.0 bits, an index has 62"),
        ({"target_bits": 3}, "from 1 a channel to 62"),
        ({"target_bits": 1e9}, "from 1 a channel to 62"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        FSQ(4, **options)
