"""Images and curves of a study's runs, from folders as runs leave them."""

import json

import pytest
from PIL import Image

from gsqtok.evaluation.report.plots import style
from gsqtok.studies.page import write_page
from gsqtok.studies.plots import choose, draw_examples
from gsqtok.studies.study import Study
from gsqtok.studies.table import Row, Table


def row(name, psnr, usage, state="done"):
    metrics = {"psnr": psnr} | ({} if usage is None else {"usage": usage})
    return Row({"method": name}, metrics, state, digest=f"{name}-digest")


@pytest.fixture
def runs(tmp_path):
    """A folder of runs; each has images, and a log but for c."""
    folder = tmp_path / "runs"
    for name in ("a", "b", "c", "identity"):
        run = folder / f"methods-{name}-{name}-digest"
        (run / "training").mkdir(parents=True)
        Image.new("RGB", (53, 13)).save(run / "images.png")
        if name != "c":
            lines = [{"step": 1, "loss/reconstruction": 0.2}, {"step": 2, "codebook/perplexity": None}]
            (run / "training" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_best_the_worst_and_the_fewest_codewords(runs):
    rows = [row("a", 20.0, 0.5), row("b", 18.0, 0.1), row("c", 19.0, 0.01), row("identity", 25.0, None)]
    assert [found.varied["method"] for found, _ in choose(Table("methods", "small", rows), runs)] == ["a", "b", "c"]
    assert [found.varied["method"] for found, _ in choose(Table("methods", "small", rows[:2]), runs)] == ["a", "b"]
    unseen = [row("gone", 30.0, 1.0), row("a", 20.0, 0.5), Row({"method": "b"}, {}, "failed", digest="b-digest")]
    assert [found.varied["method"] for found, _ in choose(Table("methods", "small", unseen), runs)] == ["a"]
    alone = Table("methods", "small", [row("identity", 25.0, None)])
    assert [found.varied["method"] for found, _ in choose(alone, runs)] == ["identity"]


def test_they_are_drawn_and_on_the_page(runs, tmp_path):
    pytest.importorskip("matplotlib")
    study = Study("methods", "Which?", "us", lambda scale: [], ("psnr",), (), lambda table: [], "much")
    table = Table("methods", "small", [row("a", 20.0, 0.5), row("c", 19.0, 0.01)])
    folder = tmp_path / "methods-small"
    folder.mkdir()
    page = write_page(study, table, folder).read_text()
    assert "![examples](examples.jpg)" in page
    assert (folder / "examples.jpg").stat().st_size > 5000
    with_curves = Image.open(folder / "examples.jpg").size
    write_page(study, Table("methods", "small", [row("c", 19.0, 0.01), row("c", 19.0, 0.01)]), folder)
    assert Image.open(folder / "examples.jpg").size[1] < with_curves[1] / 2  # no empty axes where no run left a log
    with style():
        assert draw_examples(table, tmp_path / "nowhere") is None
    for run in runs.iterdir():
        (run / "images.png").unlink()
    assert "![examples]" in write_page(study, table, folder).read_text()  # what was drawn while the runs were there
    (folder / "examples.jpg").unlink()
    assert "examples" not in write_page(study, Table("methods", "small", []), folder).read_text()


@pytest.mark.parametrize(("loss", "scale"), [(0.2, "log"), (-3.5, "linear")])
def test_a_loss_below_zero_is_drawn(runs, loss, scale):
    """The loss `log` is a logarithm: on a logarithmic axis its curve would be invisible."""
    pytest.importorskip("matplotlib")
    for run in runs.iterdir():
        lines = [{"step": step, "loss/reconstruction": loss * step} for step in (1, 2, 3)]
        (run / "training").mkdir(exist_ok=True)
        (run / "training" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with style():
        figure = draw_examples(Table("methods", "small", [row("a", 20.0, 0.5)]), runs)
    (axis,) = (axis for axis in figure.axes if "reconstruction loss" in axis.get_title())
    assert axis.get_yscale() == scale
    low, high = axis.get_ylim()
    assert all(low <= y <= high for y in axis.get_lines()[0].get_ydata())
