"""Starting from another tokenizer's weights, all of them trained or the decoder alone."""

import dataclasses
import re

import pytest
import torch

from gsqtok.data import ImageTransform, eval_loader, open_source
from gsqtok.published import PublishedConfig, get_family
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig
from gsqtok.training import AdversarialConfig, Trainer, train


@pytest.fixture
def trained(tiny, tmp_path):
    """A run of a few steps."""
    return train(tiny(output=str(tmp_path / "first"), steps=3))


@pytest.fixture
def fine(tiny, tmp_path, trained):
    """A run that goes on from it, and leaves the model to it."""

    def make(**changes):
        changes = {"output": str(tmp_path / "second"), "initialize_from": str(trained)} | changes
        model = changes.pop("model", TokenizerConfig())
        return dataclasses.replace(tiny(**changes), model=model)

    return make


def tokens(tokenizer, source):
    batch = next(iter(eval_loader(open_source(source), ImageTransform(16), batch_size=5)))
    return tokenizer.eval().encode(batch["image"])


@pytest.mark.parametrize("saved_as", ["run", "tokenizer"])
def test_starts_from_the_weights(fine, trained, saved_as):
    trainer = Trainer(fine(initialize_from=str(trained if saved_as == "run" else trained / "tokenizer")))
    before = ImageTokenizer.from_pretrained(trained)
    assert trainer.config.model == before.config
    for name, value in trainer.tokenizer.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]), name
    assert trainer.tokenizer.training
    trainer.step(1, trainer.batches())
    parts = {name.split(".")[0] for name, value in before.state_dict().items() if _differs(trainer, name, value)}
    assert parts == {"encoder", "quantizer", "decoder"}


def _differs(trainer, name, value):
    return not torch.equal(trainer.tokenizer.state_dict()[name], value)


@pytest.mark.parametrize("discriminator", ["none", "patch"])
@pytest.mark.parametrize("quantizer", ["gsq", "ema_vq"])
def test_the_frozen_encoder_keeps_every_token(tiny, tmp_path, quantizer, discriminator):
    options = {"name": quantizer, "groups": 2, "codebook_size": 32}
    first = train(tiny(output=str(tmp_path / "first"), steps=3, quantizer=options))
    adversarial = AdversarialConfig(discriminator=discriminator, options={})
    adversarial = dataclasses.replace(adversarial, options={"layers": 1} if discriminator == "patch" else {})
    config = tiny(output=str(tmp_path / "second"), steps=3, save_every=2)
    config = dataclasses.replace(
        config, model=TokenizerConfig(), initialize_from=str(first), freeze="encoder", adversarial=adversarial
    )
    second = train(config)
    train(dataclasses.replace(config, steps=5), resume=True)
    before, after = ImageTokenizer.from_pretrained(first), ImageTokenizer.from_pretrained(second)
    changed = {name for name, value in before.state_dict().items() if not torch.equal(after.state_dict()[name], value)}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert torch.equal(tokens(after, config.data.train), tokens(before, config.data.train))


def test_a_model_that_says_the_same_is_taken(fine, trained):
    config = fine()
    same = ImageTokenizer.from_pretrained(trained).config
    assert Trainer(dataclasses.replace(config, model=same)).config.model == same


def test_another_model_is_refused_by_the_option_that_differs(fine, tiny):
    model = dataclasses.replace(tiny().model, latent_dim=16)
    with pytest.raises(ValueError, match=r"latent_dim = 8, the recipe's model has 16: leave out model"):
        Trainer(fine(model=model))


def test_nothing_there(fine):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Trainer(fine(initialize_from="nowhere"))


def test_a_published_tokenizer_with_the_same_networks(tiny, tmp_path):
    """Its decoder is trained for the tokens that it makes."""
    model = dataclasses.replace(
        tiny().model, adaptive_norm=True, depth_to_space=True, norm_eps=1e-6, encoder_middle_blocks=1,
        decoder_middle_blocks=1, quantizer={"name": "lfq", "groups": 1},
    )  # fmt: skip
    names = get_family("bitdance").names(model)
    biases = re.compile(get_family("bitdance").filled)
    state = {k: v for k, v in ImageTokenizer(model).state_dict().items() if not biases.fullmatch(k)}
    torch.save({names(name)[0]: value for name, value in state.items()}, tmp_path / "weights.pt")
    changes = {
        "model": TokenizerConfig(),
        "initialize_from": f"bitdance:{tmp_path / 'weights.pt'}",
        "freeze": "encoder",
    }
    config = dataclasses.replace(tiny(output=str(tmp_path / "run"), steps=3), **changes)
    before, after = (
        ImageTokenizer.from_pretrained(config.initialize_from),
        ImageTokenizer.from_pretrained(train(config)),
    )
    changed = {name for name, value in before.state_dict().items() if not torch.equal(after.state_dict()[name], value)}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert torch.equal(tokens(after, config.data.train), tokens(before, config.data.train))


def test_a_published_tokenizer_with_other_networks(fine, tmp_path):
    options = {"channels": 32, "widths": [32], "blocks": 1, "middle": 1, "dim": 4, "codebook_size": 8}
    ImageTokenizer(PublishedConfig("maskgit", options)).save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="has the networks of MaskGIT's VQGAN, which are not trained here"):
        Trainer(fine(initialize_from=str(tmp_path / "saved")))
