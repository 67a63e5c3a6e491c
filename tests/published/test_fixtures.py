"""Files of the official formats: tokens and images are those of the official code."""

import pytest
import torch
from fixtures import FIXTURES, FOLDER, needs_fixtures

from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig

pytestmark = needs_fixtures
EACH = pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.file.partition("?")[0])


@EACH
def test_tokens_and_images_are_the_official_ones(fixture):
    tokenizer = ImageTokenizer.from_pretrained(fixture.name)
    images, expected, restored = fixture.load()
    tokens = tokenizer.encode(images)
    assert tokens.shape == (len(images), *tokenizer.grid(*images.shape[2:]), tokenizer.quantizer.tokens_per_position)
    assert torch.equal(tokens.flatten(), expected.flatten())
    with torch.no_grad():
        decoded = tokenizer.decode_latent(tokenizer.quantizer.decode(tokens).movedim(-1, 1))
    assert (decoded - restored).abs().max() < 1e-4 * restored.abs().max()
    size = tuple(images.shape[2:])
    torch.testing.assert_close(tokenizer.decode(tokens, size=size), decoded.clamp(-1, 1), atol=1e-5, rtol=0)
    assert not tokenizer.training
    assert all(weight.dtype == torch.float32 for weight in tokenizer.parameters())
    bits = tokenizer.quantizer.bits * tokens[0, ..., 0].numel()
    assert tokenizer.bits_per_pixel == pytest.approx(bits / images[0, 0].numel())


@EACH
def test_a_named_family_is_the_one_that_is_found(fixture):
    named = ImageTokenizer.from_pretrained(f"{fixture.family}:{fixture.name}")
    assert named.fingerprint() == ImageTokenizer.from_pretrained(fixture.name).fingerprint()


@EACH
def test_what_is_saved_is_the_same_tokenizer(fixture, tmp_path):
    tokenizer = ImageTokenizer.from_pretrained(fixture.name)
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = ImageTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.fingerprint() == tokenizer.fingerprint()
    images, expected, _ = fixture.load()
    assert torch.equal(loaded.encode(images).flatten(), expected.flatten())


@EACH
def test_other_sizes(fixture):
    tokenizer = ImageTokenizer.from_pretrained(fixture.name)
    images = torch.rand(1, 3, 27, 21, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if tokenizer.size is not None:
        with pytest.raises(
            ValueError, match=f"takes images of {tokenizer.size} x {tokenizer.size} pixels, not 27 x 21"
        ):
            tokenizer.encode(images)
        with pytest.raises(ValueError, match="tokens, not 2 x 3"):
            tokenizer.decode(torch.zeros(1, 2, 3, 1, dtype=torch.long))
        return
    tokens = tokenizer.encode(images)
    assert tokens.shape[1:3] == (-(-27 // tokenizer.factor), -(-21 // tokenizer.factor))
    assert tokenizer.decode(tokens, size=(27, 21)).shape == images.shape


@pytest.mark.parametrize("fixture", [f for f in FIXTURES if f.family in ("ibq", "open_magvit2", "wetok")])
def test_weights_before_averaging_can_be_asked_for(fixture):
    live = ImageTokenizer.from_pretrained(f"{fixture.name}?ema=false")
    images, averaged, _ = fixture.load()
    expected = torch.load(fixture.folder / "expected.pt", weights_only=True)["tokens_live_weights"]
    assert torch.equal(live.encode(images).flatten(), expected.flatten())
    assert not torch.equal(expected.flatten(), averaged.flatten())


def test_families_with_our_networks_are_tokenizers_like_any():
    for fixture in FIXTURES:
        own = isinstance(ImageTokenizer.from_pretrained(fixture.name).config, TokenizerConfig)
        assert own == (fixture.family in ("open_magvit2", "wetok", "bitdance"))


def test_the_tokenizer_inside_janus(tmp_path):
    """Its weights lie beside those of the language model, under a prefix."""
    weights = torch.load(FOLDER / "llamagen_vq" / "vq_ds16_c2i.pt", weights_only=True)["model"]
    inside = {f"gen_vision_model.{name}": value for name, value in weights.items()}
    torch.save(inside | {"language_model.lm_head.weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    expected = ImageTokenizer.from_pretrained(FOLDER / "llamagen_vq" / "vq_ds16_c2i.pt").fingerprint()
    assert ImageTokenizer.from_pretrained(tmp_path / "pytorch_model.bin").fingerprint() == expected
