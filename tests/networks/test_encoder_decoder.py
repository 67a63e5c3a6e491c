import pytest
import torch

from gsqtok.networks import Decoder, Encoder
from gsqtok.networks.blocks import AdaptiveGroupNorm, Attention, DepthToSpaceUpsample, Downsample, NearestUpsample

FACTORS = {4: (1, 1, 2), 8: (1, 1, 2, 2), 16: (1, 1, 1, 2, 2), 32: (1, 1, 1, 1, 1, 2), 64: (1,) * 7}


def count(network, kind):
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize("factor", FACTORS)
def test_encoder_divides_by_the_factor(factor):
    multipliers = FACTORS[factor]
    encoder = Encoder(5, 32, multipliers, [1] * len(multipliers), 1)
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, factor, 2 * factor)).shape == (1, 5, 1, 2)
    assert count(encoder, Downsample) == len(multipliers) - 1


@pytest.mark.parametrize("depth_to_space", [False, True])
@pytest.mark.parametrize("adaptive_norm", [False, True])
@pytest.mark.parametrize("factor", FACTORS)
def test_decoder_multiplies_by_the_factor(factor, adaptive_norm, depth_to_space):
    multipliers = FACTORS[factor]
    options = {"adaptive_norm": adaptive_norm, "depth_to_space": depth_to_space}
    decoder = Decoder(5, 32, multipliers, [1] * len(multipliers), 1, **options)
    with torch.no_grad():
        image = decoder(torch.randn(1, 5, 1, 2))
    assert image.shape == (1, 3, factor, 2 * factor)
    assert image.isfinite().all()
    ups = len(multipliers) - 1
    assert count(decoder, DepthToSpaceUpsample if depth_to_space else NearestUpsample) == ups
    assert count(decoder, (DepthToSpaceUpsample, NearestUpsample)) == ups
    assert count(decoder, AdaptiveGroupNorm) == (ups + 1 if adaptive_norm else 0)  # after the middle and each one


@pytest.mark.parametrize(
    ("middle_blocks", "middle_attention", "attention_factors", "expected"),
    [
        (2, False, (), 0),
        (2, True, (), 1),
        (3, True, (), 2),
        (1, True, (), 0),
        (2, False, (4,), 2),
        (2, True, (2, 4), 4),
    ],
)
def test_attention_where_asked_for(middle_blocks, middle_attention, attention_factors, expected):
    arguments = (8, 32, (1, 1, 2), (1, 1, 2), middle_blocks, middle_attention, attention_factors)
    encoder, decoder = Encoder(*arguments), Decoder(*arguments)
    assert count(encoder, Attention) == count(decoder, Attention) == expected
    with torch.no_grad():
        assert decoder(encoder(torch.zeros(1, 3, 8, 8))).shape == (1, 3, 8, 8)


def test_no_level_blocks_and_no_middle():
    arguments = (8, 32, (1, 1, 2), (0, 0, 0), 0)
    with torch.no_grad():
        assert Decoder(*arguments)(Encoder(*arguments)(torch.zeros(2, 3, 8, 4))).shape == (2, 3, 8, 4)


def test_one_level_keeps_the_size():
    with torch.no_grad():
        assert Decoder(8, 32, (1,), (1,), 1)(Encoder(8, 32, (1,), (1,), 1)(torch.zeros(1, 3, 5, 7))).shape == (
            1,
            3,
            5,
            7,
        )


def test_levels_and_blocks_must_agree():
    for network in (Encoder, Decoder):
        with pytest.raises(ValueError):
            network(8, 32, (1, 1, 2), (1, 1), 1)


def test_every_parameter_gets_a_gradient():
    arguments = (8, 32, (1, 2), (1, 1), 2, True, (2,))
    encoder, decoder = Encoder(*arguments), Decoder(*arguments, adaptive_norm=True, depth_to_space=True)
    torch.manual_seed(0)
    decoder(encoder(torch.randn(1, 3, 8, 8))).square().sum().backward()
    for network in (encoder, decoder):
        assert [name for name, p in network.named_parameters() if p.grad is None] == []
        assert all(p.grad.isfinite().all() for p in network.parameters())
    assert decoder.last_layer is decoder.conv_out.weight
