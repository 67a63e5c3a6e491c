"""Every command takes a published tokenizer: one with a grid of any size, one of one size, one with a sequence."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import official

from gsqtok.cli import main
from gsqtok.tokens import TokenDataset


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("family", "asked", "size", "grid", "words"),
    [
        ("llamagen", "", 16, (4, 4, 1), "f4, 1 x 16 codewords a position"),
        ("bsq_vit", "?heads=2&zero_mean=false", 16, (4, 4, 1), "f4, 1 x 64 codewords a position"),
        ("titok", "?l2_norm=true", 8, (1, 6, 1), "6 tokens of 16 codewords for 8 x 8 pixels"),
    ],
)
def test_from_images_to_tokens_and_back(family, asked, size, grid, words, images, tmp_path, capsys):
    torch.save(official(family), tmp_path / "weights.pt")
    model = f"{family}:{tmp_path / 'weights.pt'}{asked}"
    crop = ["--size", str(size), "--crop", "center"]

    def run(*argv):
        assert main([*argv]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert words in run("info", model)
    archive = str(tmp_path / "tokens.npz")
    run("encode", model, images, *crop, "-o", archive)
    assert np.load(archive)["0.png"].shape == grid
    run("decode", model, archive, "-o", str(tmp_path / "decoded"))
    assert Image.open(tmp_path / "decoded" / "0.png").size == (size, size)
    run("reconstruct", model, images, *crop, "-o", str(tmp_path / "restored"))
    assert len(list((tmp_path / "restored").iterdir())) == 3

    result = tmp_path / "result.json"
    run("evaluate", model, images, *crop, "--features", "none", "--perceptual", "-o", str(result))
    metrics = json.loads(result.read_text())["metrics"]
    bits = np.prod(grid) * np.log2(64 if family == "bsq_vit" else 16)
    assert metrics["bits_per_pixel"] == pytest.approx(bits / size**2)

    folder = str(tmp_path / "set")
    run("tokenize", model, images, "--size", str(size), "--workers", "0", "-o", folder)
    assert TokenDataset(folder)[0]["tokens"].shape == grid
    assert "is whole" in run("tokens", "verify", folder)

    saved = str(tmp_path / "saved")
    assert words in run("convert", model, "-o", saved)
    run("decode", saved, archive, "-o", str(tmp_path / "again"))  # the same fingerprint, or it is refused
    first, second = (np.asarray(Image.open(tmp_path / name / "0.png")) for name in ("decoded", "again"))
    assert np.array_equal(first, second)


def test_what_a_published_tokenizer_cannot_do_is_said(images, tmp_path, capsys):
    torch.save(official("titok"), tmp_path / "weights.pt")
    model = f"titok:{tmp_path / 'weights.pt'}?l2_norm=true"
    for argv, message in (
        (["reconstruct", model, images, "-o", str(tmp_path / "out")], "takes images of 8 x 8 pixels, not 40 x 4"),
        (["export", model, "-o", str(tmp_path / "out")], "takes images of 8 x 8 pixels only"),
        (
            [
                "reconstruct",
                model,
                images,
                "--size",
                "8",
                "--crop",
                "center",
                "--tile",
                "4",
                "-o",
                str(tmp_path / "out"),
            ],
            "tiles are for",
        ),
    ):
        assert main(argv) == 1
        assert message in capsys.readouterr().err
