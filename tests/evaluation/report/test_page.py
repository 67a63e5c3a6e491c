"""The page, opened in a browser: its table, its images, paging, and names that would be markup."""

import logging

import numpy as np
import pandas as pd
import pytest
from comparison import HOSTILE, KEYS, write_result

from gsqtok.evaluation.report import Comparison, as_text, write_leaderboard, write_report
from gsqtok.evaluation.report.images import token_colours
from gsqtok.evaluation.result import Result

pytest.importorskip("matplotlib")

BOOK = {"counts_sorted": [6, 3, 2, 1], "codebook_size": 64, "groups": 2, "positions": 6}
IMAGES = [("a.png", "best"), (HOSTILE, "worst")]


@pytest.fixture
def comparison(tmp_path):
    return Comparison.load(
        [
            write_result(tmp_path, "ours", 1.0, [22, 21, 20.5], codebook=BOOK, images=IMAGES),
            write_result(tmp_path, "<b>jpeg", 0.5, [30, 31, 32], images=IMAGES[:1], protocol={"size": 128}),
        ]
    )


def test_all_files_are_written(comparison, tmp_path):
    written = write_report(comparison, tmp_path / "deep" / "report")
    assert [path.name for path in written] == [
        *("report.html", "rate_distortion.png", "codebook_usage.png", "per_image.png")
    ]
    assert sorted((tmp_path / "deep" / "report").iterdir()) == sorted(written)


def test_nothing_outside_is_needed_and_no_name_is_markup(comparison, tmp_path):
    text = write_report(comparison, tmp_path / "report")[0].read_text("utf-8")
    assert "http:" not in text.replace("http-equiv", "")
    assert "https:" not in text
    assert HOSTILE not in text
    assert "<b>jpeg" not in text
    assert text.count("</script>") == 2


def test_images_that_are_missing_or_outside_are_left_out(comparison, tmp_path, caplog):
    ours, theirs = (result.images for result in comparison.results)
    ours[0]["original"] = "../" + ours[0]["original"]
    ours[1]["tokens"] = "/etc/passwd"
    (tmp_path / theirs[0]["reconstruction"]).write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        text = write_report(comparison, tmp_path / "report")[0].read_text("utf-8")
    assert caplog.text.count("outside the result's folder") == 2
    assert caplog.text.count("left out of the report") == 3
    assert '"images": []' in text


def test_token_colours_tell_tokens_apart():
    tokens = np.arange(4096).reshape(64, 64)
    colours = token_colours(tokens)
    assert colours.shape == (64, 64, 3)
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 4000
    steps = np.abs(np.diff(colours[:, :, :].reshape(-1, 3).astype(int), axis=0)).sum(1)
    assert steps.min() > 20  # neighbours in the codebook do not look alike


@pytest.fixture
def tab(browser, comparison, tmp_path):
    tab = browser.new_page(viewport={"width": 1000, "height": 900})
    tab.problems, tab.requests = [], []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("console", lambda line: tab.problems.append(line.text) if line.type == "error" else None)
    tab.on("request", lambda request: tab.requests.append(request.url[:5]))
    tab.goto(write_report(comparison, tmp_path / "report")[0].as_uri())
    yield tab
    assert tab.problems == []
    assert set(tab.requests) <= {"file:", "data:"}


def widths(tab):
    tab.wait_for_function("[...document.images].every(image => image.complete)")
    return tab.evaluate("[...document.images].map(image => image.naturalWidth)")


def test_table_and_warning_in_a_browser(tab, comparison):
    cells = "row => [...row.cells].map(cell => cell.textContent)"
    rows = tab.evaluate(f"[...document.querySelectorAll('tbody tr')].map({cells})")
    assert rows == as_text(comparison.metrics()).to_numpy().tolist()
    assert rows[1][0] == "<b>jpeg"
    assert rows[0][1:3] == ["1.000", "21.17"]
    assert "size: 128 against none" in tab.text_content(".warnings")


def test_paging_shows_each_image(tab):
    assert tab.text_content("#place") == "1 of 2"
    assert tab.text_content("#key") == "a.png"
    assert tab.text_content("#ranks") == "best of ours, <b>jpeg"
    assert tab.locator(".card").count() == 2
    # plots, the stage, and on the cards reconstruction, two for the error map, and a token map a group
    shown = widths(tab)
    assert len(shown) == 3 + 2 + 2 * 3 + 2
    assert all(shown)
    assert sorted(shown)[:2] == [8, 8]
    assert tab.text_content(".card p").startswith("bits/px 1.000 · PSNR, dB 22.00")
    tab.keyboard.press("ArrowRight")
    assert tab.text_content("#place") == "2 of 2"
    assert tab.text_content("#key") == HOSTILE
    assert all(widths(tab))
    assert tab.title() == "ours against <b>jpeg"
    tab.keyboard.press("ArrowRight")
    assert tab.text_content("#key") == KEYS[0]
    tab.click("#previous")
    assert tab.text_content("#place") == "2 of 2"


def test_choosing_a_model_sliding_and_blinking(tab):
    tab.click(".card >> nth=1")
    assert tab.text_content("#chosen") == "<b>jpeg"
    tab.keyboard.press("ArrowDown")
    assert tab.text_content("#chosen") == "ours"
    tab.locator("#stage").scroll_into_view_if_needed()
    box = tab.locator("#stage").bounding_box()
    assert box["width"] == 384  # of 32 pixels
    tab.mouse.move(box["x"] + box["width"] / 4, box["y"] + 5)
    assert tab.evaluate("getComputedStyle(document.getElementById('reconstruction')).clipPath").endswith("25%)")
    tab.keyboard.press("b")
    tab.wait_for_selector("#stage.blinking.other")
    tab.wait_for_selector("#stage.blinking:not(.other)")
    tab.keyboard.press("b")
    assert "blinking" not in tab.get_attribute("#stage", "class")


def test_error_map_is_the_difference_times_the_gain(tab):
    """Every reconstruction of the fixture is 10 steps brighter than its original."""
    import io

    from PIL import Image

    def seen():
        return np.asarray(Image.open(io.BytesIO(tab.locator(".error >> nth=0").screenshot())).convert("RGB"))

    assert np.abs(seen()[8:-8, 8:-8].astype(int) - 40).max() <= 4
    tab.fill("#gain", "8")
    assert np.abs(seen()[8:-8, 8:-8].astype(int) - 80).max() <= 8


# The leaderboard


@pytest.fixture
def results(tmp_path):
    """Three models at four rates, one under another protocol, one whose name is markup."""
    files = [
        write_result(tmp_path, "ours", 1.0, [22, 21, 20.5]),
        write_result(tmp_path, "<b>theirs|", 0.25, [20, 20, 20], protocol={"size": 128}),
        write_result(tmp_path, "jpeg-a", 0.5, [30, 31, 32]),
        write_result(tmp_path, "jpeg-b", 2.0, [33, 34, 35]),
    ]
    for file in files[:2]:
        result = Result.load(file)
        result.model |= {"fingerprint": "a" * 64, "parameters": 1_234_567}
        result.metrics |= {"encode_images_per_second": 12.0, "decode_images_per_second": 34.0, "usage": 0.5}
        result.metrics |= {"frechet_distance_net": 9.0, "mse": 1.0}
        result.save(file)
    return files


def test_leaderboard_files(results, tmp_path):
    written = write_leaderboard(results, tmp_path / "board")
    names = ["leaderboard.html", "leaderboard.md", "leaderboard.csv", "rate_distortion.png"]
    assert [path.name for path in written] == names
    text = (tmp_path / "board" / "leaderboard.md").read_text("utf-8")
    lines = text.splitlines()
    assert lines[0] == (
        "| model | bits/px | PSNR, dB | SSIM | MS-SSIM | LPIPS vgg | rFID | Fréchet distance net | usage | parameters "
        "| encode, images/s | decode, images/s | protocol |"
    )
    assert [line.split(" | ")[0] for line in lines[2:6]] == [
        *("| &lt;b&gt;theirs\\| \\*", "| jpeg @ 0.5", "| ours", "| jpeg @ 2"),
    ]
    assert lines[4] == (
        "| ours | 1.000 | 21.17 | 0.500 | - | - | - | 9.00 | 50.0% | 1,234,567 | 12 | 34 | native, 3 images |"
    )
    assert text.endswith("- &lt;b&gt;theirs\\| and ours were not measured alike: size: 128 against none\n")


def test_leaderboard_csv_holds_the_numbers(results, tmp_path):
    write_leaderboard(results, tmp_path / "board")
    table = pd.read_csv(tmp_path / "board" / "leaderboard.csv", index_col="model")
    assert table["bits_per_pixel"].tolist() == [0.25, 0.5, 1.0, 2.0]
    assert table.loc["ours", "psnr"] == Result.load(results[0])["psnr"]
    assert table.loc["ours", "parameters"] == 1_234_567
    assert np.isnan(table.loc["jpeg @ 2", "rfid"])
    assert table.loc["<b>theirs|", "protocol"] == "native 128 px, 3 images"


def test_leaderboard_in_a_browser(browser, results, tmp_path):
    tab = browser.new_page()
    problems = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    tab.goto(write_leaderboard(results, tmp_path / "board")[0].as_uri())
    assert tab.text_content("tbody tr >> nth=0").split() == [
        *("<b>theirs|", "*", "0.250", "20.00", "0.500", "-", "-", "-", "9.00", "50.0%", "1,234,567", "12", "34"),
        *("native", "128", "px,", "3", "images"),
    ]
    assert "size: 128 against none" in tab.text_content(".warnings")
    assert not tab.is_visible("#viewer")
    assert all(widths(tab)[:1])
    assert problems == []


def test_leaderboard_of_one_result_without_a_rate(tmp_path):
    file = write_result(tmp_path, "ours", 1.0, [1, 2, 3])
    result = Result.load(file)
    result.model["bits_per_pixel"] = None
    result.metrics = {"psnr": None}
    result.save(file)
    assert len(write_leaderboard([file], tmp_path / "board")) == 3  # nothing to plot
    assert "| ours | - | - |" in (tmp_path / "board" / "leaderboard.md").read_text("utf-8")
