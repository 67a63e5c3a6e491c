"""Perturbed tokens against brute force, and the perturbed Fréchet distance against the same by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from gsqtok.data import to_tensor
from gsqtok.evaluation import FrechetDistance, evaluate
from gsqtok.evaluation.perturbation import Perturbation, codewords
from gsqtok.evaluation.similarity import to_8_bits
from gsqtok.quantizers import build_quantizer
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    config = {"channels": 32, "multipliers": (1, 1), "encoder_blocks": 1, "decoder_blocks": 1, "latent_dim": 8}
    return ImageTokenizer(TokenizerConfig(**config, quantizer={"name": "gsq", "groups": 2, "codebook_size": 64})).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


def test_tokens_are_drawn_among_the_nearest_codewords():
    g = torch.Generator().manual_seed(0)
    codebook, tokens = torch.randn(50, 3, generator=g), torch.randint(50, (20, 16, 16, 2), generator=g)
    keys = [str(i) for i in range(20)]
    changed = Perturbation(0.4, 5).apply(tokens, codebook, keys)
    ranks = torch.cdist(codebook.double(), codebook.double()).argsort(1).argsort(1)[tokens, changed]
    assert ranks.max() == 4
    # A token that is drawn anew is its own again once in five times.
    assert (ranks > 0).double().mean().item() == pytest.approx(0.4 * 4 / 5, abs=0.02)
    assert [(ranks == r).sum().item() for r in (1, 2, 3, 4)] == pytest.approx([0.08 * ranks.numel()] * 4, rel=0.1)
    # The draws are an image's, whatever batch it comes in.
    again = torch.cat(
        [Perturbation(0.4, 5).apply(tokens[i : i + 3], codebook, keys[i : i + 3]) for i in range(0, 20, 3)]
    )
    assert torch.equal(again, changed)
    other = Perturbation(0.4, 5, seed=1).apply(tokens, codebook, keys)
    assert not torch.equal(other, changed)


@pytest.mark.parametrize(
    ("name", "dim", "options"),
    [
        ("gsq", 8, {"groups": 2, "codebook_size": 16}),
        ("vq", 4, {"codebook_size": 16, "metric": "cosine"}),
        ("fsq", 4, {"groups": 2, "levels": [3, 4]}),
        ("lfq", 6, {"groups": 2}),
    ],
)
def test_codewords_are_what_a_decoder_gets(name, dim, options):
    quantizer = build_quantizer(name, dim=dim, **options)
    listed = codewords(quantizer)
    g = torch.Generator().manual_seed(0)
    indices = torch.randint(quantizer.codebook_size, (30, quantizer.tokens_per_position), generator=g)
    assert torch.equal(listed[indices].flatten(1), quantizer.decode(indices))


def test_the_metric_is_that_of_the_perturbed_images(tokenizer, folder, mean_colours):
    result = evaluate(tokenizer, str(folder), features=mean_colours, pfid="0.5@9", batch_size=5)
    plain = evaluate(tokenizer, str(folder), features=mean_colours)
    images = torch.stack([to_tensor(Image.open(file)) for file in sorted(folder.iterdir())])
    keys = [file.name for file in sorted(folder.iterdir())]
    tokens = Perturbation(0.5, 9).apply(tokenizer.encode(images), tokenizer.quantizer.codebook.detach(), keys)
    distance = FrechetDistance(mean_colours.dim)
    distance.update(mean_colours(to_8_bits(images)).pooled, real=True)
    distance.update(mean_colours(to_8_bits(tokenizer.decode(tokens))).pooled, real=False)
    name = "perturbed_frechet_distance_mean_colours_0.5@9"
    assert result[name] == pytest.approx(distance.compute().item(), rel=1e-6)
    assert result[name] != pytest.approx(result["frechet_distance_mean_colours"], rel=1e-3)
    same = set(plain) - {n for n in plain if n.endswith("per_second")}
    assert {n: result[n] for n in same} == pytest.approx({n: plain[n] for n in same}, rel=1e-3, nan_ok=True)


@pytest.mark.parametrize(
    ("pfid", "message"),
    [
        ("half", "must be SHARE@NEAREST, such as 0.5@100, got 'half'"),
        ("0@5", "a share in"),
        ("1@1", "2 codewords or more"),
        ("0.5@65", "draws among 65 codewords, and the codebook has 64"),
    ],
)
def test_what_cannot_be_perturbed_is_refused(pfid, message, tokenizer, folder, mean_colours):
    with pytest.raises(ValueError, match=message):
        evaluate(tokenizer, str(folder), features=mean_colours, pfid=pfid)


def test_what_has_no_codewords_is_refused(tokenizer, folder):
    with pytest.raises(ValueError, match="pfid needs features"):
        evaluate(tokenizer, str(folder), pfid="0.5@5")
    for name, options, message in (
        ("rvq", {"stages": 2, "codebook_size": 16}, "a codeword for each token"),
        ("identity", {}, "a codeword for each token"),
        ("lfq", {}, "more than 1,048,576"),
    ):
        with pytest.raises(ValueError, match=message):
            codewords(build_quantizer(name, dim=24, **options))
