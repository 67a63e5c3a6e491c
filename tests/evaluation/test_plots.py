"""The plots hold the results' numbers: read back from matplotlib's own objects."""

import io

import numpy as np
import pytest
from comparison import KEYS, write_result
from PIL import Image

from gsqtok.evaluation.compare import Comparison
from gsqtok.evaluation.plots import PLOTS, codebook_usage, per_image, png, rate_distortion
from gsqtok.evaluation.result import Result

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
    comparison.results[2].figures["bits_per_pixel"] = 0.6
    (axis,) = per_image(comparison).axes
    assert axis.collections[0].get_offsets().tolist() == [[20, 19], [21, 20], [22, 24]]


def test_nothing_to_plot(tmp_path):
    path = write_result(tmp_path, "ours", 1.0, [1, 2, 3])
    result = Result.load(path)
    result.figures, result.per_image = {"psnr": None}, {}
    result.save(path)
    comparison = Comparison.load([path])
    assert all(png(plot, comparison) is None for plot in PLOTS.values())


@pytest.mark.parametrize("name", PLOTS)
def test_files_are_images_light_and_dark(comparison, name):
    light, dark = (
        np.asarray(Image.open(io.BytesIO(png(PLOTS[name], comparison, dark=dark))).convert("L")) for dark in (0, 1)
    )
    assert light[0, 0] > 200
    assert dark[0, 0] < 50
    assert light.std() > 5


def test_names_are_not_mathematics(tmp_path):
    comparison = Comparison.load([write_result(tmp_path, "$\\frac{x", 1.0, [1, 2, 3])])
    assert png(rate_distortion, comparison)
