"""A tokenizer of nested groups: one that serves many rates."""

import dataclasses

import pytest
import torch

from gsqtok.quantizers import quantizer_options
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig

IMAGES = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(params=["counts by the filler", "counts by channels", "and by the norm"])
def nested(tiny_config, request):
    torch.manual_seed(0)
    options = quantizer_options("gsq", groups=4, codebook_size=64, nested="uniform")
    changes = {"decoder_counts": request.param != "counts by the filler"}
    changes["adaptive_norm"] = request.param == "and by the norm"
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, quantizer=options, **changes)).eval()
    torch.nn.init.normal_(tokenizer.quantizer.fillers)
    for name, parameter in tokenizer.decoder.named_parameters():
        # adaptive norms start as plain ones; where means are much larger than what is around them, PyTorch's group norm
        # of maps with channels innermost, as training has them, loses digits
        if "gamma" in name or "beta" in name:
            torch.nn.init.normal_(parameter, std=0.02)
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


@pytest.mark.parametrize("groups", [2.5, [1, 2], True])
def test_groups_that_are_no_number(nested, groups):
    with pytest.raises(
        TypeError, match=r"whole number from 1 to 4, got .*; or \(B, h, w\) such numbers, or a function"
    ):
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


def test_training_decodes_as_tokens_do(nested, monkeypatch):
    counts = torch.randint(1, 5, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    expected = nested.decode(nested.encode(IMAGES, groups=counts), size=(16, 20))
    monkeypatch.setattr("gsqtok.quantizers.base.draw_groups", lambda *_: counts)
    out = nested.train()(IMAGES)
    torch.testing.assert_close(out.reconstruction.clamp(-1, 1), expected, atol=1e-4, rtol=0)
    assert (out.tokens >= 0).all(), "all groups are searched"


def test_a_decoder_is_told_the_counts(tiny_config):
    """By channels whose weights are zero at first: the same image; then another, although the latent is the same."""
    options = quantizer_options("gsq", groups=2, codebook_size=64, nested="uniform", filler="zeros")
    plain = ImageTokenizer(dataclasses.replace(tiny_config, quantizer=options)).eval()
    told = ImageTokenizer(dataclasses.replace(tiny_config, quantizer=options, decoder_counts=True)).eval()
    state = plain.state_dict()
    dim = told.quantizer.dim
    weight = told.decoder.conv_in.weight.data.clone()
    state["decoder.conv_in.weight"] = torch.cat([state["decoder.conv_in.weight"], 0 * weight[:, dim:]], 1)
    told.load_state_dict(state)
    tokens = plain.encode(IMAGES, groups=1)
    torch.testing.assert_close(told.decode(tokens), plain.decode(tokens), atol=1e-5, rtol=0)
    assert told.tokens_fingerprint() == plain.tokens_fingerprint(), "the decoder's affair"
    told.decoder.conv_in.weight.data[:, dim] = weight[:, dim]  # of one group
    assert (told.decode(tokens) - plain.decode(tokens)).abs().max() > 1e-3
    whole = plain.encode(IMAGES)
    torch.testing.assert_close(told.decode(whole), plain.decode(whole), atol=1e-5, rtol=0)
    latent = told.quantizer.decode(whole).movedim(-1, 1)
    torch.testing.assert_close(told.decode_latent(latent).clamp(-1, 1), told.decode(whole), atol=1e-5, rtol=0)


def test_counts_are_for_nested_groups(tiny_config):
    with pytest.raises(ValueError, match=r"decoder_counts is for nested groups.*nested: uniform"):
        dataclasses.replace(tiny_config, decoder_counts=True)
    assert "decoder_counts" not in tiny_config.to_dict(), "older files keep their fingerprint"


def test_counts_help_where_a_filler_cannot_tell(tiny_config):
    """The k-th image is plain grey of its own: the decoder alone, told k, learns it; not told, it cannot."""
    shades = torch.tensor([-0.5, 0.5])
    left = {}
    for told in (False, True):
        torch.manual_seed(0)
        options = quantizer_options("gsq", groups=2, codebook_size=64, nested="uniform", filler="zeros")
        config = dataclasses.replace(tiny_config, quantizer=options, decoder_counts=told)
        tokenizer = ImageTokenizer(config).train()
        tokenizer.quantizer.codebook.data.zero_()  # latents say nothing at all
        optimizer = torch.optim.Adam(tokenizer.decoder.parameters(), lr=3e-3)
        for _ in range(60):
            counts = torch.randint(1, 3, (8, 4, 4))[:, :1, :1].expand(8, 4, 4)
            latent = torch.zeros(8, tokenizer.quantizer.dim, 4, 4)
            target = shades[counts[:, 0, 0] - 1].view(-1, 1, 1, 1)
            loss = (tokenizer.decode_latent(latent, counts) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        left[told] = loss.item()
    assert left[True] < 0.02 < 0.2 < left[False]
