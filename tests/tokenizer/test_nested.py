"""A tokenizer of nested groups: one that serves many rates."""

import dataclasses

import pytest
import torch

from gsqtok.quantizers import quantizer_options
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig

IMAGES = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def nested(tiny_config):
    torch.manual_seed(0)
    options = quantizer_options("gsq", groups=4, codebook_size=64, nested="uniform")
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, quantizer=options)).eval()
    torch.nn.init.normal_(tokenizer.quantizer.fillers)
    return tokenizer


def test_the_first_groups_of_a_position(nested):
    tokens = nested.encode(IMAGES)
    assert tokens.shape == (2, 4, 5, 4)
    for k in range(1, 5):
        first = nested.encode(IMAGES, groups=k)
        assert torch.equal(first, tokens[..., :k])
        assert nested.bits_per_pixel_of(k) == k * 6 / 16
        counts = torch.full((2, 4, 5), k)
        marked = nested.encode(IMAGES, groups=counts)
        assert torch.equal(nested.decode(first), nested.decode(marked))
    assert nested.bits_per_pixel == nested.bits_per_pixel_of(None) == nested.bits_per_pixel_of(4)
    assert not torch.equal(nested.decode(tokens[..., :1]), nested.decode(tokens))
    assert nested.encode(IMAGES[:0], groups=2).shape == (0, 4, 5, 2)


def test_a_number_of_groups_for_each_position(nested):
    counts = torch.randint(1, 5, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    tokens = nested.encode(IMAGES, groups=counts)
    assert torch.equal((tokens >= 0).sum(-1), counts)
    assert nested.decode(tokens, size=(16, 20)).shape == IMAGES.shape
    with pytest.raises(ValueError, match="groups must be from 1 to 4, got 0"):
        nested.encode(IMAGES, groups=counts - 1)
    with pytest.raises(ValueError, match=r"groups must be integers of shape \(2, 4, 5\)"):
        nested.encode(IMAGES, groups=counts[:1])


@pytest.mark.parametrize("groups", [0, 5, -1])
def test_groups_that_there_are_not(nested, groups):
    with pytest.raises(ValueError, match=f"groups must be from 1 to 4, got {groups}"):
        nested.encode(IMAGES, groups=groups)


def test_groups_that_are_not_nested(tiny_tokenizer):
    with pytest.raises(ValueError, match="groups must be 2, got 1: the tokenizer was not trained with nested groups"):
        tiny_tokenizer.encode(IMAGES, groups=1)
    with pytest.raises(ValueError, match="its groups are not nested, so that fewer do not decode"):
        tiny_tokenizer.decode(tiny_tokenizer.encode(IMAGES)[..., :1])


def test_it_is_saved_and_loaded(nested, tmp_path):
    nested.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert loaded.quantizer.nested == "uniform"
    assert torch.equal(loaded.decode(nested.encode(IMAGES, groups=2)), nested.decode(nested.encode(IMAGES, groups=2)))


def test_options_that_came_later_change_no_fingerprint(tiny_config):
    """What an older version wrote, and what it can read: without them."""
    written = tiny_config.to_dict()["quantizer"]
    assert not {"nested", "nested_full", "nested_mixed", "filler", "codebooks", "gradient", "orthogonal_weight"} & set(
        written
    )
    assert TokenizerConfig.from_dict(tiny_config.to_dict()) == tiny_config
    nested = dataclasses.replace(tiny_config, quantizer=quantizer_options("gsq", groups=2, nested="geometric"))
    assert nested.to_dict()["quantizer"]["nested"] == "geometric"


def test_what_only_training_needs_is_not_saved(tiny_config, tmp_path):
    options = quantizer_options("fvq", groups=2, codebook_size=64, patch=8, width=16)
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, quantizer=options)).eval()
    tokenizer.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert loaded.config.quantizer.name == "vq"
    assert torch.equal(loaded.encode(IMAGES), tokenizer.encode(IMAGES))
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert "fvq" in str(tokenizer.config.quantizer.name)
