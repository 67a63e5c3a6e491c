"""Table and plots hold the results' own numbers, and unlike results are named."""

import io

import numpy as np
import pytest
from comparison import KEYS, write_result
from PIL import Image

from gsqtok.evaluation.report import Comparison, as_text
from gsqtok.evaluation.report.comparison import PLOTS, codebook_usage, per_image, rate_distortion
from gsqtok.evaluation.report.plots import png, style
from gsqtok.evaluation.result import Result, ResultError


def test_every_row_has_its_bits_and_metrics(tmp_path):
    a = write_result(tmp_path, "ours", 1.0, [20, 21, 22])
    b = write_result(tmp_path, "jpeg", 0.4567, [30, 31, 35])
    comparison = Comparison.load([a, b])
    table = comparison.metrics()
    assert list(table.columns) == ["bits_per_pixel", "psnr", "ssim", "lpips_vgg"]
    assert as_text(table).columns.tolist() == ["model", "bits/px", "PSNR, dB", "SSIM", "LPIPS vgg"]
    rows = [["ours", "1.000", "21.00", "0.500", "-"], ["jpeg", "0.457", "32.00", "0.500", "-"]]
    assert as_text(table).to_numpy().tolist() == rows
    assert comparison.warnings == []


def test_order_of_columns(tmp_path):
    path = write_result(tmp_path, "ours", 1.0, [20, 21, 22])
    result = Result.load(path)
    result.metrics = dict.fromkeys(["images_per_second", "usage", "new", "rfid", "lpips_alex", "psnr", "mse"], 1.0)
    result.save(path)
    columns = ["bits_per_pixel", "psnr", "lpips_alex", "rfid", "new", "usage", "images_per_second"]
    assert list(Comparison.load([path]).metrics().columns) == columns


def test_bits_are_the_measured_ones_and_else_the_models(tmp_path):
    path = write_result(tmp_path, "jpeg", 0.5, [1, 2, 3])
    result = Result.load(path)
    result.metrics["bits_per_pixel"] = 0.478
    result.save(path)
    assert Comparison.load([path]).metrics().loc["jpeg", "bits_per_pixel"] == 0.478
    del result.metrics["bits_per_pixel"]
    result.save(path)
    table = Comparison.load([path]).metrics()
    assert table.columns[0] == "bits_per_pixel"
    assert table.iloc[0, 0] == 0.5


def test_models_of_one_name_are_told_apart_by_bits_then_by_file(tmp_path):
    paths = [write_result(tmp_path, f"jpeg-{n}", bits, [1, 2, 3]) for n, bits in enumerate([0.5, 1, 1])]
    labels = Comparison.load(paths).labels
    assert labels == ["jpeg @ 0.5", f"jpeg @ 1 ({paths[1]})", f"jpeg @ 1 ({paths[2]})"]


def test_files_whose_names_are_no_text(tmp_path):
    paths = [write_result(tmp_path, f"jpeg-{n}", 1, [1, 2, 3]) for n in range(2)]
    odd = tmp_path / "\udcff.json"
    paths[1].rename(odd)
    comparison = Comparison.load([paths[0], odd])
    assert comparison.labels[1].endswith("\N{REPLACEMENT CHARACTER}.json)")
    as_text(comparison.metrics())


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


# Plots: read back from matplotlib's own objects

pytest.importorskip("matplotlib")
BOOK = {"counts_sorted": [6, 3, 2, 1, 0, 0, 0, 0], "codebook_size": 8, "groups": 2, "positions": 6}


@pytest.fixture
def comparison(tmp_path):
    return Comparison.load(
        [
            write_result(tmp_path, "ours", 1.0, [20, 21, 22], codebook=BOOK),
            write_result(tmp_path, "jpeg-b", 2.0, [30, 31, 32]),
            write_result(tmp_path, "jpeg-a", 0.5, [19, 20, 24]),
        ]
    )


def lines(axis):
    return {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}


def test_rate_distortion_joins_the_rates_of_one_codec(comparison):
    psnr, ssim = rate_distortion(comparison).axes
    assert lines(psnr) == {"ours": [[1, 21]], "jpeg": [[0.5, 21], [2, 31]]}
    assert "PSNR" in psnr.get_title()
    assert "higher is better" in psnr.get_title()
    assert lines(ssim)["jpeg"] == [[0.5, 0.5], [2, 0.5]]
    assert {float(t) for t in psnr.get_xticks()} == {0.5, 1, 2}


def test_usage_is_a_share_of_all_tokens(comparison):
    (axis,) = codebook_usage(comparison).axes
    assert axis.get_xscale() == axis.get_yscale() == "log"
    np.testing.assert_allclose(axis.get_lines()[0].get_xydata(), [[1, 50], [2, 25], [3, 100 / 6], [4, 100 / 12]])
    np.testing.assert_allclose(axis.get_lines()[1].get_ydata(), 100 / 8)


def test_scatter_pairs_images_by_their_key(comparison):
    comparison.results[1].per_image = {"key": [KEYS[2], "elsewhere.png", KEYS[0]], "psnr": [10.0, 11.0, 30.0]}
    comparison.results[1].model["name"] = "other"
    first, second = per_image(comparison).axes
    assert first.collections[0].get_offsets().tolist() == [[20, 30], [22, 10]]
    assert "ahead on 1 of 2" in first.get_title()
    assert second.collections[0].get_offsets().tolist() == [[20, 19], [21, 20], [22, 24]]


def test_scatter_takes_the_rate_nearest_in_bits(comparison):
    comparison.results[2].metrics["bits_per_pixel"] = 0.6
    (axis,) = per_image(comparison).axes
    assert axis.collections[0].get_offsets().tolist() == [[20, 19], [21, 20], [22, 24]]


def test_nothing_to_plot(tmp_path):
    path = write_result(tmp_path, "ours", 1.0, [1, 2, 3])
    result = Result.load(path)
    result.metrics, result.per_image = {"psnr": None}, {}
    result.save(path)
    comparison = Comparison.load([path])
    with style():
        assert all(plot(comparison) is None for plot in PLOTS.values())


@pytest.mark.parametrize("name", PLOTS)
def test_files_are_images_light_and_dark(comparison, name):
    images = []
    for dark in (False, True):
        with style(dark):
            images.append(np.asarray(Image.open(io.BytesIO(png(PLOTS[name](comparison)))).convert("L")))
    light, dark = images
    assert light[0, 0] > 200
    assert dark[0, 0] < 50
    assert light.std() > 5


def test_names_are_not_mathematics(tmp_path):
    comparison = Comparison.load([write_result(tmp_path, "$\\frac{x", 1.0, [1, 2, 3])])
    with style():
        assert png(rate_distortion(comparison))
