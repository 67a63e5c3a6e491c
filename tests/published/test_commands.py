"""Every command takes a published tokenizer: one with a grid of any size, one of one size, one with a sequence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CONFIGURATIONS, TAMING, official

from gsqtok.cli import main
from gsqtok.tokenizer import ImageTokenizer
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

    run("compare", str(result), "-o", str(tmp_path / "report"))
    run("leaderboard", str(result), "-o", str(tmp_path / "board"))
    assert (tmp_path / "report" / "report.html").stat().st_size > 1000

    folder = str(tmp_path / "set")
    run("tokenize", model, images, "--size", str(size), "--workers", "0", "-o", folder)
    assert TokenDataset(folder)[0]["tokens"].shape == grid
    assert "is whole" in run("tokens", "verify", folder)

    saved = str(tmp_path / "saved")
    assert words in run("convert", model, "-o", saved)
    run("decode", saved, archive, "-o", str(tmp_path / "again"))  # the same fingerprint, or it is refused
    first, second = (np.asarray(Image.open(tmp_path / name / "0.png")) for name in ("decoded", "again"))
    assert np.array_equal(first, second)


def test_export_of_one_that_takes_any_size(tmp_path, capsys, monkeypatch):
    few = TAMING | {"widths": [32, 32], "attention": []}  # tracing takes seconds a layer
    monkeypatch.setitem(CONFIGURATIONS, "llamagen", ("llamagen", few, ""))
    torch.save(official("llamagen"), tmp_path / "weights.pt")
    folder = tmp_path / "exported"
    model = f"llamagen:{tmp_path / 'weights.pt'}"  # its layers are those that tests/export writes in ONNX, too
    assert main(["export", model, "-o", str(folder), "--format", "pt2"]) == 0
    assert "verified in" in capsys.readouterr().out
    assert {file.name for file in folder.iterdir()} >= {"encoder.pt2", "decoder.pt2"}


@pytest.mark.parametrize(("family", "asked", "size"), [("llamagen", "", 40), ("titok", "?l2_norm=true", 8)])
def test_the_app_shows_grids_and_sequences(family, asked, size, tmp_path):
    pytest.importorskip("gradio")
    from gsqtok.app import views
    from gsqtok.app.codebook import neighbours

    torch.save(official(family), tmp_path / "weights.pt")
    tokenizer = ImageTokenizer.from_pretrained(f"{family}:{tmp_path / 'weights.pt'}{asked}")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))
    seen = views.look(tokenizer, image, "a")
    tokens = seen.ours.tokens
    assert tokens.shape == (*tokenizer.grid(size, size), 1)
    assert torch.equal(tokens, views.encoded(tokenizer, image))
    assert views.decoded(tokenizer, tokens, (size, size)).size == (size, size)
    assert len(views.metrics(seen, family)) == 2
    assert len(neighbours(tokenizer.quantizer, tokens[0, 0], 0, nearest=3)) == 3


def test_fine_tuning_with_before_and_after_in_one_report(images, tmp_path, capsys):
    """The decoder of a published tokenizer is trained for the tokens that it makes; two results, one page."""
    torch.save(official("open_magvit2"), tmp_path / "weights.ckpt")
    model, run_folder = f"open_magvit2:{tmp_path / 'weights.ckpt'}", str(tmp_path / "run")

    def run(*argv):
        assert main([*argv]) == 0, capsys.readouterr().err

    train = ["--initialize-from", model, "--freeze", "encoder", "--loss.perceptual-weight", "0", "--ema-decay", "0.5"]
    train += ["--data.train", images, "--data.size", "16", "--data.workers", "0", "--precision", "float32"]
    run("train", *train, "--steps", "3", "--batch-size", "2", "--output", run_folder)
    results = []
    for name, source in (("before", model), ("after", run_folder)):
        results.append(str(tmp_path / f"{name}.json"))
        run("evaluate", source, images, "--size", "16", "--features", "none", "--perceptual", "-o", results[-1])
    before, after = (json.loads(Path(file).read_text()) for file in results)
    assert before["codebook"] == after["codebook"]  # the same tokens
    assert before["metrics"]["psnr"] != after["metrics"]["psnr"]
    run("compare", *results, "-o", str(tmp_path / "report"))
    page = (tmp_path / "report" / "report.html").read_text()
    assert all(name in page for name in ("open_magvit2:", "run"))


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
