"""The examples run and do what they say: shorter than by hand, otherwise as they are."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import gsqtok
from gsqtok import ImageTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGES = str(Path(gsqtok.__file__).parent / "demo_images")


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test():
    tested = {"own_autoencoder", "replace_vector_quantize_pytorch", "batch_encode", "fine_tune"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_own_autoencoder_learns():
    errors = example("own_autoencoder").main(steps=60)
    assert sum(errors[-5:]) / 5 < 0.3 * errors[0]


@pytest.mark.parametrize("heads", [1, 4])
def test_the_drop_in_gives_what_vector_quantize_pytorch_gives(heads):
    from vector_quantize_pytorch import VectorQuantize

    torch.manual_seed(0)
    ours = example("replace_vector_quantize_pytorch").DropIn(dim=32, codebook_size=256, heads=heads)
    theirs = VectorQuantize(32, 256, heads=heads, codebook_dim=32 // heads, use_cosine_sim=True).eval()
    for shape in ((2, 10, 32), (2, 3, 5, 32)):
        x = torch.randn(shape)
        if len(shape) == 4:
            ours.image = theirs.accept_image_fmap = True
            x = x.movedim(-1, 1)
        quantized, indices, loss = ours(x)
        expected = theirs(x)
        assert quantized.shape == expected[0].shape
        assert indices.shape == expected[1].shape
        assert indices.dtype == expected[1].dtype
        assert loss.numel() == expected[2].numel() == 1
    assert torch.equal(ours.get_output_from_indices(indices), quantized.movedim(1, -1))
    # With their codebook and projections of identity the same codewords are chosen.
    codebook = theirs._codebook.embed[0] if theirs._codebook.embed.ndim == 3 else theirs._codebook.embed
    ours.quantizer.codebook.data.copy_(codebook)
    theirs.project_in = theirs.project_out = torch.nn.Identity()
    assert torch.equal(ours(x)[1], theirs(x)[1])


def test_batch_encode(tmp_path):
    count = example("batch_encode").main(IMAGES, str(tmp_path / "tokens.npz"), size=32)
    assert count == len(list(Path(IMAGES).glob("*.png")))
    groups = ImageTokenizer.from_pretrained().quantizer.tokens_per_position
    assert np.load(tmp_path / "tokens.npz")["astronaut.png"].shape == (4, 4, groups)


@pytest.mark.slow
def test_fine_tune_changes_the_decoder_alone(tmp_path):
    tuned = example("fine_tune").main(
        IMAGES, str(tmp_path / "run"), steps=2, size=16, batch_size=2, perceptual_weight=0
    )
    start, images = ImageTokenizer.from_pretrained(), torch.rand(1, 3, 24, 24) * 2 - 1
    assert torch.equal(tuned.encode(images), start.encode(images))
    assert not torch.equal(tuned.decoder.conv_out.weight, start.decoder.conv_out.weight)
