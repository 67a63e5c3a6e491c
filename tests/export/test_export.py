"""Exported tokenizers, run by onnxruntime and by torch.export, against the originals."""

import dataclasses
import json
import subprocess
import sys

import onnxruntime
import processes
import pytest
import torch

import gsqtok.export.export as module
from gsqtok.cli import main
from gsqtok.export.export import ExportError, export, verify
from gsqtok.quantizers import build_quantizer, list_quantizers
from gsqtok.tokenizer import ImageTokenizer

pytestmark = pytest.mark.slow


def tokenizer_with(tiny_config, quantizer, **options):
    torch.manual_seed(0)
    return ImageTokenizer(dataclasses.replace(tiny_config, quantizer=quantizer, **options)).eval()


@pytest.fixture
def small(tiny_config):
    """Networks of few layers, where the quantizer is what matters: tracing costs seconds a layer."""
    few = {"multipliers": (1, 1), "encoder_blocks": 0, "decoder_blocks": 0}
    return dataclasses.replace(tiny_config, encoder_middle_blocks=0, decoder_middle_blocks=0, **few)


@pytest.fixture(scope="module")
def programs():
    """Graphs of ``everything``: tracing one takes as long as writing it in both forms."""
    return {}


@pytest.fixture
def everything(tiny_config, programs, monkeypatch):
    """A tokenizer with every part of the networks, few of each, whose decoder is driven past [-1, 1]."""
    trace = module._program

    def traced(graph, *arguments):
        if type(graph) not in programs:
            programs[type(graph)] = trace(graph, *arguments)
        return programs[type(graph)]

    monkeypatch.setattr(module, "_program", traced)
    options = {"adaptive_norm": True, "depth_to_space": True, "middle_attention": True, "attention_factors": (2,)}
    options |= {"multipliers": (1, 2), "encoder_blocks": 1, "decoder_blocks": 0}
    tokenizer = tokenizer_with(tiny_config, {"name": "gsq", "groups": 2, "codebook_size": 500}, **options)
    torch.nn.init.normal_(tokenizer.decoder.conv_out.weight)
    return tokenizer


def test_onnx_by_the_command(everything, tmp_path, capsys):
    everything.save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "verified in onnxruntime" in out
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"encoder.onnx", "decoder.onnx", "export.json"}
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["fingerprint"] == everything.fingerprint()
    assert record["verification"]["tokens_differing"] == 0

    # By the public names of inputs and outputs, at sizes and batches that were not traced.
    encoder, decoder = (onnxruntime.InferenceSession(tmp_path / "out" / f"{n}.onnx") for n in ("encoder", "decoder"))
    for batch, height, width in ((1, 4, 8), (5, 33, 18)):
        images = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
        tokens, latent = encoder.run(["tokens", "latent"], {"images": images.numpy()})
        assert torch.equal(torch.from_numpy(tokens), everything.encode(images))
        assert latent.shape[1] == 8
        (photos,) = decoder.run(["images"], {"tokens": tokens})
        expected = everything.decode(torch.from_numpy(tokens))
        assert (torch.from_numpy(photos) - expected).abs().max() < 1e-3
        assert abs(photos).max() == 1  # clamped, as decode does


def test_pt2_runs_with_the_search_alone(everything, tmp_path):
    result = export(everything, tmp_path / "out", "pt2")
    assert result.tokens_differing == 0
    images = torch.rand(3, 3, 9, 14) * 2 - 1
    torch.save(images, tmp_path / "images.pt")
    code = f"""
import sys, torch
import gsqtok.search
encoder = torch.export.load({str(tmp_path / "out" / "encoder.pt2")!r}).module()
decoder = torch.export.load({str(tmp_path / "out" / "decoder.pt2")!r}).module()
with torch.no_grad():
    tokens, latent = encoder(torch.load({str(tmp_path / "images.pt")!r}))
    torch.save((tokens, decoder(tokens)), {str(tmp_path / "found.pt")!r})
assert "gsqtok.tokenizer" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=processes.PATIENCE)
    tokens, photos = torch.load(tmp_path / "found.pt")
    assert torch.equal(tokens, everything.encode(images))
    # the last weights are of size 1, so values before clamping are of size 20
    torch.testing.assert_close(photos, everything.decode(tokens), atol=5e-5, rtol=0)


OPTIONS = {
    "gsq": {"groups": 12, "codebook_size": 64},  # d = 2: by angle
    "vq": {"groups": 2, "codebook_size": 64},
    "vq by cosine": {"codebook_size": 64, "metric": "cosine", "gradient": "rotation", "init": "kmeans"},
    "ema_vq": {"codebook_size": 64},
    "rvq": {"stages": 2, "codebook_size": 32},
    "rsq": {"groups": 2, "stages": 2, "codebook_size": 32},
    "fsq": {"levels": [5] * 24},  # indices of 55 bits
    "lfq": {"groups": 2},
    "bsq": {"groups": 2},
    "leech": {},
    "gsq separate and nested": {"groups": 4, "codebook_size": 64, "codebooks": "separate", "nested": "uniform"},
    "simvq": {"groups": 2, "codebook_size": 64},
    "fvq": {"groups": 2, "codebook_size": 64, "patch": 16, "width": 16},
    "diveq": {"groups": 2, "codebook_size": 64},
    "ibq": {"groups": 2, "codebook_size": 64},
    "rfsq": {"groups": 2, "stages": 2, "levels": [4] * 12},
    "rlfq": {"groups": 2, "stages": 2},
}
LIKE_LEECH = {"random_sphere", "fibonacci_sphere"}  # with other codewords


class Quantizers(torch.nn.Module):
    """Every quantizer on one latent, so that one export covers them all.

    The batch alone is free: each size more that is free costs seconds. ``everything`` has them all.
    """

    def __init__(self):
        super().__init__()
        self.all = torch.nn.ModuleList(build_quantizer(name.split()[0], dim=24, **o) for name, o in OPTIONS.items())

    def forward(self, latent):
        indices = [quantizer(latent).indices for quantizer in self.all]
        return *indices, *(quantizer.decode(i) for quantizer, i in zip(self.all, indices, strict=True))


def test_every_quantizer_but_identity(tmp_path):
    """In ONNX; as programs of ``torch.export`` the contract of quantizers has them."""
    assert {name.split()[0] for name in OPTIONS} == set(list_quantizers()) - LIKE_LEECH - {
        "identity",
        "gsq_study",
    }
    torch.manual_seed(0)
    quantizers = Quantizers().eval().requires_grad_(False)
    names = [f"{what} {n}" for what in ("indices", "values") for n in range(len(OPTIONS))]
    module._write_onnx(quantizers, torch.randn(2, 3, 4, 24), ["latent"], names, (), tmp_path / "all.onnx")
    run = module._load_onnx(tmp_path / "all.onnx")
    for shape in ((1, 3, 4, 24), (7, 3, 4, 24)):
        latent = torch.randn(shape)
        for name, found, expected in zip(names, run(latent), quantizers(latent), strict=True):
            if name.startswith("indices"):
                assert torch.equal(found, expected), name
            else:
                torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_quantizer_that_cannot_be_exported_says_so(small, tmp_path):
    with pytest.raises(ExportError, match="quantizer 'identity' cannot be exported to onnx") as caught:
        export(tokenizer_with(small, {"name": "identity"}), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "export.json").exists()


def test_onnx_without_its_packages(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'gsqtok\[onnx\]'"):
        export(tiny_tokenizer, tmp_path)


# Verification sees what is wrong


def test_verification_passes_the_tokenizer_itself(tiny_tokenizer):
    graph = module.EncoderGraph(tiny_tokenizer)
    result = verify(tiny_tokenizer, graph, module.DecoderGraph(tiny_tokenizer), "torch")
    assert result.tokens > 100
    assert (result.tokens_differing, result.latent_error, result.image_error) == (0, 0, 0)


@pytest.mark.parametrize("wrong", ["tokens", "latent", "images"])
def test_verification_refuses(tiny_tokenizer, wrong):
    graph = module.EncoderGraph(tiny_tokenizer)

    def encode(images):
        tokens, latent = graph(images)
        if wrong == "tokens":
            tokens[0, 0, 0, 0] = (tokens[0, 0, 0, 0] + 1) % 64
        if wrong == "latent":
            latent = latent * 1.01  # the tokens of GSQ stay the same
        return tokens, latent

    def decode(tokens):
        return module.DecoderGraph(tiny_tokenizer)(tokens) + (0.01 if wrong == "images" else 0)

    with pytest.raises(ExportError, match=wrong):
        verify(tiny_tokenizer, encode, decode, "torch")


def test_compact_networks_and_nested_groups_with_a_codebook_each(small, tmp_path):
    options = {"name": "gsq", "groups": 4, "codebook_size": 64, "codebooks": "separate", "nested": "uniform"}
    layers = {"network": "compact", "encoder_blocks": 1, "decoder_blocks": (1, 0), "decoder_counts": True}
    tokenizer = tokenizer_with(small, options, **layers)
    torch.nn.init.normal_(tokenizer.encoder.blocks[0].conv2.weight, std=0.1)
    torch.nn.init.normal_(tokenizer.quantizer.fillers)
    assert export(tokenizer, tmp_path).tokens_differing == 0
    images = torch.rand(1, 3, 16, 12) * 2 - 1
    tokens = tokenizer.encode(images)
    assert torch.equal(module._load_onnx(tmp_path / "encoder.onnx")(images)[0], tokens)
    tokens[..., 2:] = -1
    tokens[:, ::2, :, 1] = -1  # of some positions one group, of others two
    decoded = module._load_onnx(tmp_path / "decoder.onnx")(tokens)
    torch.testing.assert_close(decoded, tokenizer.decode(tokens), atol=1e-5, rtol=0)
