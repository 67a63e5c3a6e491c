"""The page, opened in a browser: its table, its images, paging, and names that would be markup."""

import logging

import numpy as np
import pytest
from comparison import HOSTILE, KEYS, write_result

from gsqtok.evaluation.compare import Comparison
from gsqtok.evaluation.report import token_colours, write_report

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
    assert rows == comparison.rows()
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
    box = tab.locator("#stage").bounding_box()
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
