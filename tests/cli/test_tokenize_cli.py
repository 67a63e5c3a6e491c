"""gsqtok tokenize and gsqtok tokens, in this process."""

import dataclasses
import errno

import numpy as np
import pytest
import torch
from PIL import Image

from gsqtok.cli import main
from gsqtok.cli.tokenize import _summary
from gsqtok.evaluation import Result
from gsqtok.quantizers import quantizer_options
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokenizer.allocation import map_bits
from gsqtok.tokens import TokenDataset, manifest
from gsqtok.tokens.run import RunResult


@pytest.fixture
def model(tmp_path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def images(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in/broken.png").write_bytes((tmp_path / "in/0.png").read_bytes()[:100])
    return str(tmp_path / "in")


def test_from_images_to_verified_halves(model, images, tmp_path, capsys):
    out, a, b, whole = (str(tmp_path / name) for name in ("out", "a", "b", "whole"))
    command = ["tokenize", model, images, "-o", out, "--size", "8", "--shard-size", "3", "--workers", "0"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "6 images, 6 rows, 48 tokens" in said
    assert "1 skipped: see" in said
    assert main(["tokens", "verify", out, "--sample", "2", "-o", str(tmp_path / "images")]) == 0
    assert "is whole: 6 images in 6 rows, 1 skipped" in capsys.readouterr().out
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
    in_tiles = ["--tile", "4", "-o", str(tmp_path / "tiled")]
    assert main(["tokens", "verify", out, "--sample", "2", *in_tiles]) == 0
    for whole_image in (tmp_path / "images").glob("*.png"):
        pair = [np.asarray(Image.open(file)) for file in (whole_image, tmp_path / "tiled" / whole_image.name)]
        np.testing.assert_allclose(*(np.int16(x) for x in pair), atol=1)
    capsys.readouterr()
    assert main(["tokens", "info", out]) == 0
    assert "6, and 1 skipped" in capsys.readouterr().out
    assert main(["tokens", "split", out, "0.5", "-o", a, b]) == 0
    assert main(["tokens", "merge", a, b, "-o", whole]) == 0
    assert main(["tokens", "verify", whole, "--sample", "0"]) == 0
    capsys.readouterr()

    assert main([*command, "--tile", "4"]) == 1
    assert "tile was null, is 4" in capsys.readouterr().err
    assert main([*command, "--crop", "ten"]) == 1
    assert "its fingerprint is" in capsys.readouterr().err
    next((tmp_path / "out/data").iterdir()).unlink()
    assert main(["tokens", "verify", out]) == 1
    assert "No such file" in capsys.readouterr().out


def test_a_full_disk_is_said_in_a_line(model, images, tmp_path, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "write_shard", full)
    assert main(["tokenize", model, images, "-o", str(tmp_path / "out"), "--size", "8", "--workers", "0"]) == 1
    error = capsys.readouterr().err
    assert "make room and run the command again" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--crop", "ten", "--flip"], "leave out flip"),
        (["--size", "0", "--crop", "center"], "need a size"),
        (["--ray-address", "auto"], "goes with --engine ray"),
        (["--shard-size", "0"], "shard_size must be positive"),
        (["--tile", "5"], "tile must be an even number"),
    ],
)
def test_options_that_do_not_go_together(model, images, tmp_path, capsys, arguments, reason):
    assert main(["tokenize", model, images, "-o", str(tmp_path / "out"), "--workers", "0", *arguments]) == 1
    assert reason in capsys.readouterr().err


def test_an_unreadable_source(model, tmp_path, capsys):
    assert main(["tokenize", model, str(tmp_path / "nothing"), "-o", str(tmp_path / "out"), "--workers", "0"]) == 1
    assert "no file or folder" in capsys.readouterr().err


def test_advice_takes_more_than_a_moment():
    metrics = {"images": 5, "of": 5, "seconds": 3.0, "images_per_second": 0.3, "bytes_per_second": 900}
    metrics |= {"decoded_per_core_second": None, "waiting": 0.9}
    lines = _summary(RunResult(metrics, None, 2), "out")
    assert lines[0].startswith("5 images in 3.0 s: 0.3 images/s, 0.0009 MB/s read")
    for more in ({}, {"seconds": 60.0}, {"images": 5000}):
        assert not any("is the limit" in line for line in _summary(RunResult(metrics | more, None, 2), "out"))
    more = {"seconds": 60.0, "images": 5000}
    assert "waited for images 90% of the time" in _summary(RunResult(metrics | more, None, 2), "out")[1]


def test_nested_groups(tiny_config, images, tmp_path, capsys):
    """Every command that makes tokens or images takes the first groups of a nested tokenizer, and of no other."""
    nested, plain, out = str(tmp_path / "nested"), str(tmp_path / "plain"), str(tmp_path / "tokens")
    options = quantizer_options("gsq", groups=2, codebook_size=64, nested="uniform")
    ImageTokenizer(dataclasses.replace(tiny_config, quantizer=options)).save_pretrained(nested)
    ImageTokenizer(tiny_config).save_pretrained(plain)
    command = ["tokenize", nested, images, "-o", out, "--size", "8", "--workers", "0"]
    assert main([*command, "--groups", "1"]) == 0
    assert "6 images, 6 rows, 24 tokens" in capsys.readouterr().out
    assert manifest.read_manifest(out)["groups"] == 1
    assert main(["tokens", "verify", out, "--sample", "2", "-o", str(tmp_path / "shown")]) == 0
    capsys.readouterr()
    assert main(command) == 1
    assert "groups" in capsys.readouterr().err
    archive = str(tmp_path / "one.npz")
    assert main(["encode", nested, images, "-o", archive, "--groups", "1"]) == 0
    assert "positions of 6 bits" in capsys.readouterr().out
    assert np.load(archive)["0.png"].shape == (3, 3, 1)
    assert main(["decode", nested, archive, "-o", str(tmp_path / "decoded")]) == 0
    assert main(["reconstruct", nested, images, "-o", str(tmp_path / "back"), "--groups", "1"]) == 0
    assert "0.375" in capsys.readouterr().out
    result = str(tmp_path / "result.json")
    measured = ["evaluate", nested, images, "--features", "none", "--groups", "1", "-o", result]
    assert main(measured) == 0
    assert Result.load(result).model["groups"] == 1
    assert Result.load(result)["bits_per_pixel"] == pytest.approx(9 * 6 / (9 * 12))
    for verb in ("tokenize", "encode", "reconstruct", "evaluate"):
        where = [] if verb == "evaluate" else ["-o", str(tmp_path / f"{verb}.npz")]
        capsys.readouterr()
        assert main([verb, plain, images, *where, "--groups", "1"]) == 1
        assert "was not trained with nested groups" in capsys.readouterr().err
        assert main([verb, nested, images, *where, "--groups", "3"]) == 1
        said = capsys.readouterr().err
        assert "groups must be from 1 to 2, got 3" in said
        assert "left out" not in said, "refused before anything else"
        assert not where or not (tmp_path / f"{verb}.npz" / "plan.json").exists()


def test_groups_by_position_are_measured(tiny_config, images, tmp_path, capsys):
    """As gsqtok tokenize chooses them: learnt again, and from its file."""
    torch.manual_seed(0)
    model, plain, out = str(tmp_path / "nested"), str(tmp_path / "plain"), tmp_path / "tokens"
    options = quantizer_options("gsq", groups=4, codebook_size=64, nested="uniform")
    ImageTokenizer(dataclasses.replace(tiny_config, quantizer=options)).save_pretrained(model)
    ImageTokenizer(tiny_config).save_pretrained(plain)
    assert (
        main(["tokenize", model, images, "-o", str(out), "--size", "8", "--workers", "0", "--mean-groups", "2.5"]) == 0
    )
    measured = ["evaluate", model, images, "--size", "8", "--crop", "center", "--features", "none", "--perceptual"]
    found = []
    for way in (["--mean-groups", "2.5"], ["--allocation", str(out / "allocation.safetensors")]):
        capsys.readouterr()
        assert main([*measured, *way, "-o", str(tmp_path / "result.json")]) == 0
        assert "bits of 2.5 groups a position on average" in capsys.readouterr().out
        found.append(Result.load(tmp_path / "result.json"))
    assert dict(found[0].per_image) == dict(found[1].per_image)
    assert found[0].model["mean_groups"] == found[1].model["mean_groups"] == 2.5
    tokens = TokenDataset(out)
    kept = sum(int((row["tokens"] >= 0).sum()) for row in tokens)
    maps = sum(map_bits((row["tokens"] >= 0).sum(-1), 4) for row in tokens)
    assert found[0]["bits_per_pixel"] == pytest.approx((6 * kept + maps) / (64 * len(tokens)))
    for refused, why in (
        ([plain, images, "--mean-groups", "1.5"], "bits by position need nested groups"),
        ([model, images, "--mean-groups", "0"], "mean_groups must be above 1 and at most 4, got 0"),
        ([model, images, "--mean-groups", "2", "--groups", "2"], "--groups and --mean-groups say in different ways"),
        ([model, images, "--mean-groups", "2", "--files", "adaptive"], "leave --mean-groups out"),
        ([model, images, "--mean-groups", "2", "--pfid", "0.5@5"], "leave --mean-groups out"),
        (["codec:webp@1.0", images, "--allocation", "file"], "--allocation is a tokenizer's"),
        ([model, images, "--mean-groups", "2", "--protocol", "tokbench"], "leave --mean-groups out"),
    ):
        capsys.readouterr()
        assert main(["evaluate", *refused]) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert why in said
        assert "left out:" not in said
