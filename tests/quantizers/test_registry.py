from dataclasses import dataclass

import pytest
import torch

from gsqtok.options import Count
from gsqtok.quantizers import (
    GSQ,
    Quantizer,
    QuantizerOutput,
    build_quantizer,
    list_quantizers,
    quantizer_options,
    register_quantizer,
    registry,
)


@dataclass(eq=False, repr=False, kw_only=True)
class Steps(Quantizer):
    """Rounds every channel to a multiple of 1 / ``steps`` within [0, 1]."""

    steps: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokens_per_position = self.dim
        self.codebook_size = self.steps + 1

    def quantize(self, latent):
        indices = (latent * self.steps).round().clamp(0, self.steps).long()
        return QuantizerOutput(self.lookup(indices), indices, latent.new_zeros(()))

    def lookup(self, indices):
        return indices / self.steps


class Halves(Quantizer):
    """The same with a constructor of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.tokens_per_position = dim
        self.codebook_size = 3

    quantize = Steps.quantize
    lookup = Steps.lookup
    steps = 2


@pytest.fixture
def empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", {})


def test_a_quantizer_of_ones_own(empty_registry):
    register_quantizer("steps")(Steps)
    quantizer = build_quantizer("steps", dim=2, steps=4)
    assert quantizer(torch.tensor([[0.1, 0.6]])).indices.tolist() == [[0, 2]]
    assert quantizer.config == {"name": "steps", "dim": 2, "codebook_dim": None, "steps": 4}
    assert quantizer_options("steps") == Steps.Options(steps=2)
    with pytest.raises(ValueError, match=r"steps must be a whole number of at least 1, got 2.5"):
        quantizer_options("steps", steps=2.5)


def test_one_with_a_constructor_of_its_own(empty_registry):
    register_quantizer("halves")(Halves)
    assert list_quantizers() == ["halves"]
    quantizer = build_quantizer("halves", dim=2)
    out = quantizer(torch.tensor([[0.1, 0.6]]))
    assert out.indices.tolist() == [[0, 1]]
    assert quantizer.decode(out.indices).tolist() == [[0.0, 0.5]]
    assert quantizer.config == {"name": "halves", "dim": 2}


def test_a_name_is_registered_once(empty_registry):
    register_quantizer("halves")(Halves)
    with pytest.raises(ValueError, match="'halves' is registered already, by Halves"):
        register_quantizer("halves")(Halves)


def test_listing_by_pattern(empty_registry):
    for name in ("vq", "gvq", "bsq"):
        register_quantizer(name)(type(name, (Halves,), {}))
    assert list_quantizers() == list_quantizers("*") == ["bsq", "gvq", "vq"]
    assert list_quantizers("*vq") == ["gvq", "vq"]
    assert list_quantizers("x*") == []


def test_built_by_name():
    quantizer = build_quantizer("gsq", dim=16, groups=8, codebook_size=256)
    assert isinstance(quantizer, GSQ)
    assert quantizer.groups == 8


def test_unknown_names_are_told_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown quantizer 'gsqq'; did you mean 'gsq'\?"):
        build_quantizer("gsqq", dim=8)
    with pytest.raises(ValueError, match=r"unknown quantizer 'what'; known: .*gsq"):
        build_quantizer("what", dim=8)
    with pytest.raises(ValueError, match=r"quantizer 'gsq' has no option 'group'; did you mean 'groups'\?"):
        build_quantizer("gsq", dim=8, group=2)
    with pytest.raises(ValueError, match="dim must be a whole number of at least 1, got 'eight'"):
        build_quantizer("gsq", dim="eight")
