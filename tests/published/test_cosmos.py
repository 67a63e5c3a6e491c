"""Programs of TorchScript with the signature of Cosmos' discrete tokenizers, made here."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from gsqtok.cli import main
from gsqtok.tokenizer import CheckpointError, ImageTokenizer

LEVELS = (8, 8, 8, 5, 5, 5)


class Quantizer(nn.Module):
    """FSQ as the official description says, with the levels among its buffers."""

    def __init__(self, levels):
        super().__init__()
        self.register_buffer("_levels", torch.tensor(levels, dtype=torch.int32))
        self.register_buffer("basis", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]))

    def forward(self, z):
        levels = self._levels.to(z.dtype)
        half = (levels - 1) * 1.001 / 2
        offset = torch.where(self._levels % 2 == 1, 0.0, 0.5)
        bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
        width = torch.div(self._levels, 2, rounding_mode="floor")
        return bounded.round() / width

    def indices(self, codes):
        width = torch.div(self._levels, 2, rounding_mode="floor")
        return ((codes * width + width) * self.basis).sum(-1).to(torch.int32)

    def codes(self, indices):
        width = torch.div(self._levels, 2, rounding_mode="floor")
        digits = torch.div(indices.long().unsqueeze(-1), self.basis, rounding_mode="floor") % self._levels
        return (digits - width) / width


class Encode(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 12, 8, stride=8)
        self.quant_conv = nn.Conv2d(12, 6, 1)
        self.quantizer = Quantizer(LEVELS)

    def forward(self, x):
        codes = self.quantizer(4 * self.quant_conv(self.encoder(x)).movedim(1, -1))
        return self.quantizer.indices(codes), codes.movedim(-1, 1), torch.zeros(())


class Decode(nn.Module):
    def __init__(self):
        super().__init__()
        self.quantizer = Quantizer(LEVELS)
        self.post_quant_conv = nn.Conv2d(6, 12, 1)
        self.decoder = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, indices):
        codes = self.quantizer.codes(indices).movedim(-1, 1)
        x = self.post_quant_conv(codes.to(self.post_quant_conv.weight.dtype))
        return torch.tanh(self.decoder(F.interpolate(x, scale_factor=8.0, mode="nearest")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("Cosmos-0.1-Tokenizer-DI8x8")
    torch.manual_seed(0)
    for name, network in (("encoder", Encode()), ("decoder", Decode())):
        torch.jit.script(network.eval()).save(str(folder / f"{name}.jit"))
    (folder / "config.json").write_text(json.dumps({"architectures": ["CosmosTokenizer"]}))  # as on the hub
    return folder


def test_tokens_and_images_are_those_of_the_programs(folder):
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encoder, decoder = (torch.jit.load(folder / f"{name}.jit") for name in ("encoder", "decoder"))
    with torch.no_grad():
        indices, codes, _ = encoder(images)
        expected = decoder(indices)
    tokenizer = ImageTokenizer.from_pretrained(folder, allow_code=True)
    assert (tokenizer.factor, tokenizer.layout, tokenizer.quantizer.codebook_size) == (8, "grid", 64000)
    assert tokenizer.bits_per_pixel == pytest.approx(math.log2(64000) / 64)
    tokens = tokenizer.encode(images)
    assert torch.equal(tokens[..., 0], indices.long())
    assert len(tokens.unique()) > 10
    assert torch.equal(tokenizer.quantizer.decode(tokens).movedim(-1, 1), codes)
    torch.testing.assert_close(tokenizer.decode(tokens), expected)
    odd = torch.rand(1, 3, 27, 21)
    assert tokenizer.decode(tokenizer.encode(odd), size=(27, 21)).shape == odd.shape
    assert all(not weight.is_meta for weight in tokenizer.parameters())
    named = ImageTokenizer.from_pretrained(f"cosmos_di:{folder / 'encoder.jit'}?levels=8,8,8,5,5,5", allow_code=True)
    assert named.fingerprint() == tokenizer.fingerprint()


def test_programs_in_half_precision_keep_their_types(tmp_path):
    for name, network in (("encoder", Encode()), ("decoder", Decode())):
        torch.jit.script(network.eval().to(torch.bfloat16)).save(str(tmp_path / f"{name}.jit"))
    tokenizer = ImageTokenizer.from_pretrained(tmp_path, allow_code=True)
    assert {weight.dtype for weight in tokenizer.encoder.parameters()} == {torch.bfloat16}
    assert tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, 16, 16))).dtype == torch.float32


def test_nothing_runs_unless_it_is_allowed(folder, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it ran"))
    for path in (folder, folder / "encoder.jit"):
        with pytest.raises(CheckpointError, match="a program that runs when it is opened: if you trust who made it"):
            ImageTokenizer.from_pretrained(path)
    with pytest.raises(CheckpointError, match="allow_code=True"):
        ImageTokenizer.from_pretrained(f"cosmos_di:{folder}?levels=8,8")
    with pytest.raises(ValueError, match="takes no option 'allow_code'"):  # no name of a file may allow it
        ImageTokenizer.from_pretrained(f"cosmos_di:{folder}?allow_code=true")


def test_what_is_no_such_tokenizer_is_refused(folder, tmp_path):
    def error(source):
        with pytest.raises(CheckpointError) as caught:
            ImageTokenizer.from_pretrained(source, allow_code=True)
        return str(caught.value)

    (tmp_path / "encoder.jit").write_bytes((folder / "encoder.jit").read_bytes())
    assert "holds no decoder.jit" in error(tmp_path)
    (tmp_path / "decoder.jit").write_text("nothing")
    assert "decoder.jit is no TorchScript" in error(tmp_path)
    torch.jit.script(nn.Conv2d(3, 6, 8, stride=8)).save(str(tmp_path / "encoder.jit"))
    assert "does not hold the levels of its channels (quantizer._levels)" in error(tmp_path)
    assert "gives no (indices, codewords, ...) of images" in error(f"cosmos_di:{tmp_path}?levels=8,8,8,5,5,5")


def test_commands(folder, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images / "a.png")
    tokens = str(tmp_path / "tokens.npz")
    assert main(["encode", str(folder), str(images), "-o", tokens]) == 1
    assert "--allow-code on the command line" in capsys.readouterr().err
    for command in (
        ["info", str(folder)],
        ["encode", str(folder), str(images), "-o", tokens],
        ["decode", str(folder), tokens, "-o", str(tmp_path / "decoded")],
        ["reconstruct", str(folder), str(images), "-o", str(tmp_path / "restored")],
        ["evaluate", str(folder), str(images), "--features", "none", "--perceptual"],
        ["tokenize", str(folder), str(images), "--workers", "0", "-o", str(tmp_path / "set")],
    ):
        assert main([*command, "--allow-code"]) == 0, capsys.readouterr().err
    decoded, restored = (Image.open(tmp_path / name / "a.png") for name in ("decoded", "restored"))
    assert np.array_equal(decoded, restored)
    with pytest.raises(ValueError, match="is a program and is not saved as weights"):
        ImageTokenizer.from_pretrained(folder, allow_code=True).save_pretrained(tmp_path / "saved")
