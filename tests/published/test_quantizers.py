"""Lookups that only published tokenizers have, against the formula written out."""

import pytest
import torch
from torch.nn import functional as F

from gsqtok.published.var import MultiScale
from gsqtok.quantizers import IBQ


@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_the_largest_inner_product(spread):
    generator = torch.Generator().manual_seed(0)
    quantizer = IBQ(dim=5, codebook_size=300).eval()
    with torch.no_grad():
        quantizer.codebook.normal_(generator=generator)
        quantizer.codebook.mul_(torch.rand(300, 1, generator=generator) * spread)
        quantizer.codebook[7] = quantizer.codebook[9] = 2 * spread  # both the longest
    latent = torch.randn(2000, 5, generator=generator)
    found = quantizer(latent).indices[:, 0]
    products = latent.double() @ quantizer.codebook.double().T
    assert torch.equal(found, products.argmax(1))
    assert (found == 7).any()
    assert not (found == 9).any()  # equal: the first one
    nearest = torch.cdist(latent, quantizer.codebook).argmin(1)
    assert (found != nearest).float().mean() > 0.1  # another rule than the least distance


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),  # the published one: the third and the eighth lie in the middle of two
        (2, [0] * 5 + [1] * 5),
        (1, [0] * 10),
    ],
)
def test_ten_scales_share_convolutions(count, expected):
    quantizer = MultiScale(dim=2, codebook_size=4, scales=range(1, 11), convolutions=count)
    number = {id(phi): i for i, phi in enumerate(quantizer.phi)}
    assert [number[id(phi)] for _, phi in quantizer._steps()] == expected


def test_each_scale_adds_to_what_the_ones_before_make():
    torch.manual_seed(0)
    quantizer = MultiScale(dim=3, codebook_size=32, scales=(1, 2, 4), convolutions=1).eval()
    torch.nn.init.normal_(quantizer.codebook)
    latent = torch.randn(2, 4, 4, 3)
    with torch.no_grad():
        out = quantizer(latent)
    assert out.indices.shape == (2, 1, 21, 1)
    rest, place = latent.movedim(-1, 1), 0
    for scale in (1, 2, 4):
        grid = rest.unflatten(2, (scale, -1)).unflatten(4, (scale, -1)).mean((3, 5)).permute(0, 2, 3, 1)
        expected = torch.cdist(grid.flatten(0, 2), quantizer.codebook).argmin(1).view(2, -1)
        assert torch.equal(out.indices[:, 0, place : place + scale**2, 0], expected)
        codewords = quantizer.codebook[expected].unflatten(1, (scale, scale)).movedim(-1, 1)
        if scale < 4:
            codewords = F.interpolate(codewords, (4, 4), mode="bicubic")
        with torch.no_grad():
            rest = rest - (codewords + quantizer.phi[0](codewords)) / 2
        place += scale**2
    torch.testing.assert_close(out.quantized, latent - rest.movedim(1, -1), atol=1e-5, rtol=0)
    with torch.no_grad():
        assert torch.equal(quantizer.decode(out.indices), out.quantized)


def test_a_latent_that_is_not_finite():
    quantizer = MultiScale(dim=2, codebook_size=4, scales=(1, 2), convolutions=1).eval()
    torch.nn.init.normal_(quantizer.codebook)
    latent = torch.randn(2, 2, 2, 2)
    latent[1, 0, 1, 0] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantizer(latent)
    indices = quantizer(latent, check=False).indices
    assert (indices[0] >= 0).all()
    assert (indices[1] == -1).all()
