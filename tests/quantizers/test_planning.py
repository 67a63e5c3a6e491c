"""Plans spend what was asked, build as they say, and predict the errors that simulation finds."""

import math

import pytest
import torch
from torch.nn import functional as F

from gsqtok.quantizers import build_quantizer
from gsqtok.quantizers.planning import LEECH_ERROR, plan


def relative_error(quantizer, latents=2000, seed=3):
    """Mean spherical error between uniform points on each group's sphere and their values."""
    d = quantizer.dim // quantizer.groups
    latent = torch.randn(latents, quantizer.groups, d, generator=torch.Generator().manual_seed(seed))
    unit = F.normalize(latent, dim=-1)
    value = quantizer.eval()(unit.flatten(-2)).quantized.view_as(unit)
    return (value - unit).double().square().sum(-1).mean().item()


@pytest.mark.parametrize(("bits_per_pixel", "factor"), [(0.28, 16), (0.07, 16), (0.28, 8), (18 / 256, 16)])
def test_every_setting_builds_and_spends_the_bits(bits_per_pixel, factor):
    settings = plan(bits_per_pixel, factor=factor)
    assert {s.method for s in settings} >= {"gsq", "lfq", "bsq"}
    for s in settings:
        assert s.bits_per_pixel == pytest.approx(bits_per_pixel, rel=0.021)
        assert s.bits == pytest.approx(s.bits_per_pixel * factor**2)
        if s.codebook_parameters > 2**20:
            continue
        quantizer = build_quantizer(s.method, **s.options)
        assert quantizer.bits == pytest.approx(s.bits)
        assert quantizer.codebook_size == s.codebook_size
        assert quantizer.groups == s.groups
        assert quantizer.dim == s.dim == s.groups * s.group_dim
        assert sum(p.numel() for p in quantizer.parameters()) == s.codebook_parameters


@pytest.mark.parametrize("method", ["gsq", "bsq", "rsq"])
def test_expected_errors_are_what_is_measured(method):
    torch.manual_seed(0)
    checked = 0
    for s in plan(0.14, factor=16, methods=method):
        if s.codebook_size <= 4096 or method == "bsq":
            measured = relative_error(build_quantizer(s.method, **s.options))
            assert measured == pytest.approx(s.expected_error, rel=0.1), s
            assert measured > s.error_bound
            checked += 1
    assert checked


def test_leech_error_is_what_is_measured():
    (setting,) = plan(math.log2(196_560) / 256, factor=16, methods="leech")
    assert relative_error(build_quantizer("leech", **setting.options), 1000) == pytest.approx(LEECH_ERROR, rel=0.02)
    assert setting.error_bound < LEECH_ERROR


def test_more_groups_at_equal_bits_err_more_on_their_spheres_but_search_less():
    """Same tokens, larger d: a larger error; the search costs V d a token."""
    settings = {s.group_dim: s for s in plan(0.28, factor=16, methods="gsq") if s.codebook_size == 2**18}
    errors = [settings[d].expected_error for d in (2, 4, 8, 16)]
    assert errors == sorted(errors)
    assert settings[4].search_cost == 4 * 2**18 * 4
    assert settings[2].search_cost == 4 * 18


def test_patterns_choose_methods():
    assert {s.method for s in plan(0.28, factor=16, methods="vq")} == {"vq"}
    assert {s.method for s in plan(0.28, factor=16, methods="*sq")} == {"bsq", "fsq", "gsq", "rsq"}
    assert "vq" not in {s.method for s in plan(0.28, factor=16)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits_per_pixel": 0.0}, "bits_per_pixel must be above 0"),
        ({"bits_per_pixel": math.inf}, "bits_per_pixel must be above 0 and at most 24"),
        ({"factor": 0}, "factor must be at least 1"),
        ({"methods": "pq"}, "no method to plan for matches 'pq'; known: bsq, ema_vq, fsq"),
        ({"tolerance": 2.0}, "tolerance must be from 0 to 1"),
        (
            {"bits_per_pixel": 0.1, "methods": "leech"},
            "no setting of leech is within 2%.*nearest has 0.06869 bits per pixel",
        ),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(**{"bits_per_pixel": 0.28, "factor": 16} | arguments)
