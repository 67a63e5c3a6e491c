"""The search with rounding: what the original's matrix of distances gives."""

import pytest
import torch
from torch.nn import functional as F

from gsqtok.quantizers import build_quantizer
from gsqtok.search import nearest, normalize
from gsqtok.studies import gsq_study


def sphere(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block", [1, 1000, 1 << 20])
def test_takes_the_least_of_the_rounded_distances(precision, block, monkeypatch):
    monkeypatch.setattr(gsq_study, "_BLOCK", block)
    latents, codebook = sphere(50, 4, 0), 0.1 + sphere(300, 4, 1)
    found = gsq_study.nearest_rounded(latents, codebook, precision)
    distances = codebook.square().sum(1) - 2 * (latents.to(precision) @ codebook.to(precision).T).float()
    torch.testing.assert_close(distances.gather(1, found[:, None])[:, 0], distances.amin(1), rtol=1e-6, atol=1e-6)
    assert found.dtype == torch.int64


def test_no_rows():
    assert gsq_study.nearest_rounded(torch.empty(0, 4), sphere(3, 4, 0), torch.bfloat16).shape == (0,)


def test_float32_agrees_with_the_exact_search_where_codewords_are_far_apart():
    latents, codebook = sphere(500, 8, 0), sphere(64, 8, 1)
    assert torch.equal(gsq_study.nearest_rounded(latents, codebook, torch.float32), nearest(latents, codebook))


def test_bf16_misses_neighbours_on_the_circle():
    """The paper's fall of usage at d = 2: 8 bits of mantissa cannot tell 4,096 directions apart."""
    latents, codebook = sphere(2000, 2, 0), sphere(4096, 2, 1)
    exact, coarse = nearest(latents, codebook), gsq_study.nearest_rounded(latents, codebook, torch.bfloat16)
    assert (exact == coarse).float().mean() < 0.2
    assert len(coarse.unique()) < 0.5 * len(exact.unique())


@pytest.mark.parametrize("norm", ["l2", "none"])
def test_gsq_searches_as_it_is_told(norm):
    options = {"dim": 4, "groups": 2, "codebook_size": 512, "norm": norm}
    torch.manual_seed(0)
    exact = build_quantizer("gsq", **options)
    latent = torch.randn(64, 4, requires_grad=True)
    for search, precision in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        other = build_quantizer("gsq_study", search=search, **options)
        other.load_state_dict(exact.state_dict())
        with torch.autocast("cpu", torch.bfloat16):
            out = other(latent)
        rows = latent.detach().reshape(-1, 2)
        rows, codebook = (normalize(x) if norm == "l2" else x for x in (rows, exact.codebook.detach()))
        assert torch.equal(out.indices.flatten(), gsq_study.nearest_rounded(rows, codebook, precision))
        assert other.config["search"] == search
        out.quantized.sum().backward()
        assert latent.grad.isfinite().all()
    with pytest.raises(ValueError, match="search"):
        build_quantizer("gsq_study", search="half", **options)
