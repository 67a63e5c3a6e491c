"""`compare` on results that somebody changed: each is shown, or refused in one line that names the file."""

import json

import pytest
from comparison import write_result

from gsqtok.cli import main
from gsqtok.evaluation.report import Comparison, as_text, markdown_table
from gsqtok.evaluation.report.comparison import PLOTS
from gsqtok.evaluation.report.images import image_pages
from gsqtok.evaluation.report.plots import style
from gsqtok.evaluation.result import ResultError

VALUES = {
    **{"10^400": "1" + 400 * "0", "10^5000": "1" + 5000 * "0", "-1": "-1", "0": "0", "1e999": "1e999", "NaN": "NaN"},
    **{"null": "null", "true": "true", "a list": "[[]]", "an object": "{}", "nested": 9000 * "[" + 9000 * "]"},
    **{"half a surrogate pair": r'"\ud800"', "markup": r'"\u001b[31m<b>|\n"'},
}
BOOK = {"counts_sorted": [6, 3, 2, 1], "codebook_size": 64, "groups": 2, "positions": 6}
PLACE = "\ue000"  # what stands where a value is put in


@pytest.fixture
def result(tmp_path):
    """A result's file, its parsed JSON, and an unharmed one to compare with."""
    images = [("a.png", "best"), ("c.png", "worst")]
    file = write_result(tmp_path, "mine", 1.0, [22, 21, 20.5], codebook=BOOK, images=images)
    other = write_result(tmp_path, "other", 0.5, [30, 31, 32], codebook=BOOK)
    return file, json.loads(file.read_text("utf-8")), other


def changed(values, text):
    """The JSON with ``text`` in every place in turn, and as a further name everywhere."""
    keys = list(values) if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else []
    for key in keys:
        before = values[key]
        values[key] = PLACE
        yield lambda root: json.dumps(root).replace(json.dumps(PLACE), text)
        values[key] = before
        yield from changed(before, text)
    if isinstance(values, dict) and text.startswith('"'):
        values[PLACE] = 1
        yield lambda root: json.dumps(root).replace(json.dumps(PLACE), text)
        del values[PLACE]


@pytest.mark.parametrize("name", VALUES)
def test_it_is_shown_or_refused_in_a_line(result, name, tmp_path):
    pytest.importorskip("matplotlib")
    file, values, other = result
    shown, lines = 0, []
    for write in changed(values, VALUES[name]):
        file.write_text(write(values), "utf-8")
        try:
            comparison = Comparison.load([other, file])
        except ResultError as error:
            lines.append(str(error))
            continue
        text = markdown_table(as_text(comparison.metrics())) + "".join(comparison.warnings)
        assert "\x1b" not in text
        assert "<b>" not in markdown_table(as_text(comparison.metrics()))
        if not shown % 20:
            image_pages(comparison)
            with style():
                for plot in PLOTS.values():
                    plot(comparison)
        shown += 1
    assert len(lines) > 20
    assert all(line.startswith(f"{file}: ") or line.startswith(f"{file} is not a JSON file: ") for line in lines)
    assert not any("\n" in line or len(line) > len(str(file)) + 400 for line in lines)
    assert shown > 0 or name in ("10^5000", "nested", "half a surrogate pair", "NaN")


def test_on_the_command_line(result, capsys):
    file, values, other = result
    values["metrics"]["psnr"] = 10**400
    values["codebook"]["codebook_size"] = 0
    file.write_text(json.dumps(values), "utf-8")
    assert main(["compare", str(other), str(file)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line
