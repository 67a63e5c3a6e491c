"""The adapter against diffusers' own VQModel: the same calls, the same tensors."""

import inspect

import pytest
import torch

from gsqtok.export.vq_model import VQModel
from gsqtok.tokenizer import ImageTokenizer

diffusers = pytest.importorskip("diffusers")
IMAGES = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
METHODS = ("encode", "decode", "forward")


@pytest.fixture(scope="module", params=["group", "spatial"])
def pair(request, tmp_path_factory):
    """A VQModel of diffusers, and the same weights as a tokenizer behind the adapter."""
    folder = tmp_path_factory.mktemp("vqmodel")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = diffusers.VQModel(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(32, 32),
            latent_channels=4,
            num_vq_embeddings=32,
            norm_type=request.param,
            lookup_from_codebook=True,
        ).eval()
    torch.nn.init.normal_(theirs.quantize.embedding.weight, generator=torch.Generator().manual_seed(1))
    theirs.save_pretrained(folder)
    return VQModel(ImageTokenizer.from_pretrained(folder)), theirs


@pytest.mark.parametrize("name", METHODS)
def test_the_same_signatures(name):
    ours, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(getattr(kind, name)).parameters.values()]
        for kind in (VQModel, diffusers.VQModel)
    )
    assert ours == theirs


@torch.no_grad()
def test_the_same_tensors(pair):
    ours, theirs = pair
    latents = ours.encode(IMAGES).latents
    assert torch.equal(latents, theirs.encode(IMAGES).latents)
    assert torch.equal(ours.encode(IMAGES, return_dict=False)[0], latents)
    for options in ({}, {"force_not_quantize": False}):
        found, expected = ours.decode(latents, **options), theirs.decode(latents, **options)
        torch.testing.assert_close(found.sample, expected.sample, **CLOSE)
        torch.testing.assert_close(found.commit_loss, expected.commit_loss)
    torch.testing.assert_close(ours(IMAGES).sample, theirs(IMAGES).sample, **CLOSE)
    torch.testing.assert_close(ours(IMAGES, return_dict=False), theirs(IMAGES, return_dict=False), **CLOSE)

    tokens = torch.randint(32, (2, 8 * 12), generator=torch.Generator().manual_seed(0))
    options = {"force_not_quantize": True, "shape": (2, 8, 12, 4)}  # as pipelines over tokens call it
    found, expected = ours.decode(tokens, **options), theirs.decode(tokens, **options)
    torch.testing.assert_close(found.sample, expected.sample, **CLOSE)
    theirs.register_to_config(lookup_from_codebook=False)
    found, expected = (model.decode(latents, force_not_quantize=True) for model in (ours, theirs))
    torch.testing.assert_close(found.sample, expected.sample, **CLOSE)
    assert torch.equal(found.commit_loss, expected.commit_loss)


def test_what_pipelines_ask_of_the_configuration(pair):
    ours, theirs = pair
    assert 2 ** (len(ours.config.block_out_channels) - 1) == 2 == 2 ** (len(theirs.config.block_out_channels) - 1)
    for name in ("in_channels", "out_channels", "latent_channels", "num_vq_embeddings"):
        assert ours.config[name] == getattr(ours.config, name) == theirs.config[name]
    assert ours.config.vq_embed_dim == theirs.quantize.vq_embed_dim
    assert (ours.dtype, ours.device) == (theirs.dtype, theirs.device)


@torch.no_grad()
def test_groups_of_tokens(tiny_tokenizer):
    """A tokenizer of our own, with two indices a position."""
    model = VQModel(tiny_tokenizer)
    tokens = tiny_tokenizer.encode(IMAGES)
    expected = tiny_tokenizer.decode(tokens)
    torch.testing.assert_close(model(IMAGES).sample.clamp(-1, 1), expected, rtol=1e-5, atol=1e-5)
    flat = model.decode(tokens.flatten(1), force_not_quantize=True, shape=(2, 4, 6, 8))
    torch.testing.assert_close(flat.sample.clamp(-1, 1), expected, rtol=1e-5, atol=1e-5)
    assert 2 ** (len(model.config.block_out_channels) - 1) == tiny_tokenizer.factor == 4
