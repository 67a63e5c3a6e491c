import pytest
import torch
from torch.nn import functional as F

from gsqtok.networks.compact import CompactBlock, CompactDecoder, CompactEncoder, Merge, RMSNorm, Split


@pytest.mark.parametrize(("levels", "factor"), [(1, 2), (3, 8), (4, 16)])
def test_factor_and_blocks(levels, factor):
    widths, blocks = (32, 64, 32, 96)[:levels], (1, 0, 2, 1)[:levels]
    encoder, decoder = CompactEncoder(5, widths, blocks), CompactDecoder(5, widths, blocks)
    latent = encoder(torch.rand(2, 3, factor, 3 * factor) * 2 - 1)
    assert latent.shape == (2, 5, 1, 3)
    assert decoder(latent).shape == (2, 3, factor, 3 * factor)
    for network in (encoder, decoder):
        assert sum(isinstance(block, CompactBlock) for block in network.blocks) == sum(blocks)


def test_rms_norm_is_the_formula():
    norm = RMSNorm(32)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(2, 32, 3, 5)
    expected = x / (x.square().mean(1, keepdim=True) + norm.eps).sqrt()
    expected = F.silu(expected * norm.weight[:, None, None] + norm.bias[:, None, None])
    torch.testing.assert_close(norm(x), expected)


def test_rms_norm_computes_in_the_type_of_its_weights():
    norm, x = RMSNorm(64), (100 * torch.randn(1, 64, 4, 4)).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), norm(x.float()).bfloat16(), rtol=0, atol=0)


def test_blocks_start_as_the_identity():
    x = torch.randn(1, 32, 4, 4)
    assert torch.equal(CompactEncoder(4, (32,), (1,)).blocks[0](x), x)


def test_merge_and_split_know_the_place_of_each_pixel():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    merge, split = Merge(1, 4), Split(4, 1)
    with torch.no_grad():
        merge.weight.copy_(torch.eye(4).view(4, 1, 2, 2))
        split.conv.weight.copy_(torch.eye(4).view(4, 4, 1, 1))
        assert torch.equal(split(merge(x)), x)


def test_an_image_is_seen_the_same_within_a_larger_one():
    """Nothing but the convolutions' reach ties a position to the rest: no statistics of the whole image."""
    torch.manual_seed(0)
    encoder = CompactEncoder(4, (32, 32), (1, 1)).double()
    for block in (encoder.blocks[0], encoder.blocks[2]):
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64) * 2 - 1
    larger = F.pad(image, (32, 32, 32, 32), value=0.9)
    within = encoder(larger)[:, :, 8:-8, 8:-8]
    torch.testing.assert_close(within[:, :, 4:-4, 4:-4], encoder(image)[:, :, 4:-4, 4:-4], rtol=0, atol=1e-12)


def test_gradients_reach_every_weight():
    encoder, decoder = CompactEncoder(4, (32, 64), (1, 1)), CompactDecoder(4, (32, 64), (1, 1))
    for network in (encoder, decoder):
        for module in network.modules():
            if isinstance(module, CompactBlock):
                torch.nn.init.normal_(module.conv2.weight, std=0.1)
    decoder(encoder(torch.rand(1, 3, 16, 16))).square().mean().backward()
    for network in (encoder, decoder):
        assert all(parameter.grad.any() for parameter in network.parameters())
    assert decoder.last_layer is decoder.conv_out.weight
