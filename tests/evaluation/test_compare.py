"""The table holds the results' own numbers, and unlike results are named."""

import math

import pytest
from comparison import write_result

from gsqtok.evaluation.compare import Comparison, figure_of, shown
from gsqtok.evaluation.result import Result, ResultError


def test_every_row_has_its_bits_and_figures(tmp_path):
    a = write_result(tmp_path, "ours", 1.0, [20, 21, 22])
    b = write_result(tmp_path, "jpeg", 0.4567, [30, 31, 35])
    comparison = Comparison.load([a, b])
    assert comparison.columns() == ["bits_per_pixel", "psnr", "ssim", "lpips_vgg"]
    assert comparison.rows() == [["ours", "1.000", "21.00", "0.500", "-"], ["jpeg", "0.457", "32.00", "0.500", "-"]]
    assert comparison.warnings == []


def test_order_of_columns(tmp_path):
    path = write_result(tmp_path, "ours", 1.0, [20, 21, 22])
    result = Result.load(path)
    result.figures = dict.fromkeys(["images_per_second", "usage", "new", "rfid", "lpips_alex", "psnr", "mse"], 1.0)
    result.save(path)
    columns = ["bits_per_pixel", "psnr", "lpips_alex", "rfid", "new", "usage", "images_per_second"]
    assert Comparison.load([path]).columns() == columns


def test_bits_are_the_measured_ones_and_else_the_models(tmp_path):
    path = write_result(tmp_path, "jpeg", 0.5, [1, 2, 3])
    result = Result.load(path)
    result.figures["bits_per_pixel"] = 0.478
    result.save(path)
    assert Comparison.load([path]).rows()[0][1] == "0.478"
    del result.figures["bits_per_pixel"]
    result.save(path)
    comparison = Comparison.load([path])
    assert comparison.columns()[0] == "bits_per_pixel"
    assert comparison.rows()[0][1] == "0.500"


def test_models_of_one_name_are_told_apart_by_bits_then_by_file(tmp_path):
    paths = [write_result(tmp_path, f"jpeg-{n}", bits, [1, 2, 3]) for n, bits in enumerate([0.5, 1, 1])]
    labels = Comparison.load(paths).labels
    assert labels == ["jpeg @ 0.5", f"jpeg @ 1 ({paths[1]})", f"jpeg @ 1 ({paths[2]})"]


def test_another_protocol_and_other_images_are_named(tmp_path):
    paths = [
        write_result(tmp_path, "ours", 1, [1, 2, 3]),
        write_result(tmp_path, "small", 1, [1, 2, 3], protocol={"size": 128}),
        write_result(tmp_path, "other", 1, [1, 2, 3], fingerprint="e" * 64),
    ]
    size, images = Comparison.load(paths).warnings
    assert "small" in size
    assert "size: 128 against none" in size
    assert "other" in images
    assert "eeeeeeeeeeee" in images


def test_bad_files(tmp_path):
    good = write_result(tmp_path, "ours", 1, [1, 2, 3])
    (tmp_path / "bad.json").write_text('{"format": "something else"}')
    with pytest.raises(ResultError, match=r"bad\.json"):
        Comparison.load([good, tmp_path / "bad.json"])
    with pytest.raises(FileNotFoundError):
        Comparison.load([tmp_path / "none.json"])
    with pytest.raises(ValueError, match="twice"):
        Comparison.load([good, tmp_path / "." / "ours.json"])
    with pytest.raises(ValueError, match="nothing to compare"):
        Comparison.load([])


def test_how_figures_are_shown():
    assert shown("psnr", math.inf) == shown("psnr", None) == "-"
    assert shown("usage", 0.5) == "50.0%"
    assert figure_of("lpips_vgg").title == "LPIPS vgg"
    assert figure_of("lpips_vgg").better == figure_of("rfid").better == -1
    assert figure_of("ssim").better == 1
    assert figure_of("lpips_vgg").format == figure_of("dists").format
    assert figure_of("frechet_distance_timm_x").title == "Fréchet distance timm x"
    assert figure_of("something_new") == ("something new", ".4g", 0)
