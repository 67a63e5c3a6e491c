"""The documentation's pages are what their script makes of the measurements, and benchmarks keep one style."""

import ast
import json
import re
from pathlib import Path

import cards
import pages
import pytest
from huggingface_hub import ModelCard
from table import Table

ROOT = Path(__file__).parents[2]
SCRIPTS = [p for p in sorted((ROOT / "benchmarks").glob("*.py")) if "__main__" in p.read_text()]


def test_every_page_is_what_the_script_makes():
    made = dict(pages.pages())
    assert {path.name for path in made} >= {"performance.md", "published.md", "README.md"}
    stale = [path.name for path, text in made.items() if path.read_text() != text]
    assert not stale, f"run python benchmarks/pages.py: {stale}"


@pytest.mark.parametrize("place", cards.CARDS)
def test_every_tokenizer_to_load_has_a_card(place):
    path = ROOT / place / "README.md"
    if not path.exists():
        pytest.skip("a source distribution has the package's weights alone")
    card = ModelCard.load(path)
    models = {model["name"].removeprefix("pretrained/"): model for model in card.data.to_dict()["model-index"]}
    measured = pages.measured()
    names = set(cards.CARDS[place])
    if len(names) == 1:  # huggingface_hub reads the results of many as those of the last
        assert models.keys() == names
    values = {(r.dataset_type, r.metric_type, r.metric_value) for r in card.data.eval_results}
    for name in names:
        for data in cards.DATA:
            found = measured[f"{data}/{name}"]["metrics"]
            assert (data, "psnr", round(found["psnr"], 4)) in values
            assert f" {found['frechet_mobilenetv2']:.1f} |" in card.text
    assert "images per second" not in card.text
    for picture in re.findall(r"!\[.*\]\((.*)\)", card.text):
        assert (path.parent / picture).stat().st_size < 300_000


def test_a_card_follows_the_record(monkeypatch):
    record = pages.measured()
    record["coco-256/embedded"]["metrics"]["psnr"] = 12.34
    monkeypatch.setattr(pages, "measured", lambda: record)
    place = "src/gsqtok/embedded"
    card = pages.card(place, (ROOT / place / "README.md").read_text())
    assert "value: 12.34\n" in card
    assert "| 1.00 | 12.34 |" in card


def test_a_figure_that_changes_changes_the_page(tmp_path):
    for path in pages.SECTIONS.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    changed = tmp_path / "13-search-gpu.json"
    changed.write_text(changed.read_text().replace("search 60", "search 61"))
    assert pages.performance(tmp_path) != pages.performance()


def test_sections_say_where_their_figures_come_from():
    for path in pages.SECTIONS.glob("*.json"):
        section = json.loads(path.read_text())
        measured = section.get("measured", {})
        if "rows" in section:
            assert {"device", "date", "command", "commit", "load"} <= measured.keys(), path.name
        elif any(character.isdigit() for character in json.dumps(section["text"])):
            assert measured.get("written_in"), path.name


def test_a_table_is_written_with_how_it_was_measured_and_keeps_its_text(tmp_path, capsys):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"title": "Kept", "level": 3, "text": ["Said before."]}))
    table = Table({"way": ("way", ""), "ms": ("median, ms", ".2f")})
    table.add({"way": "fast", "ms": 1.234, "runs": 7})
    table.add({"way": "none", "ms": float("nan")})
    table.write(file, "cpu", versions={"peer": "1.2"})
    assert capsys.readouterr().out.split("\n")[1].split() == ["fast", "1.23"]
    written = json.loads(file.read_text())
    assert written["rows"][0] == {"way": "fast", "ms": 1.234, "runs": 7}
    assert written["measured"]["torch"]
    page = pages.section(written)
    assert "### Kept\n\nSaid before.\n\n| way | median, ms |\n|---|--:|\n| fast | 1.23 |\n| none | - |\n" in page
    assert "peer 1.2" in page


def test_quality_without_a_metric_is_a_dash():
    assert pages.cell(None, ".2f") == "-"
    assert pages.table(["<a", "b"], [["x", "1"]]) == "| a | b |\n|---|--:|\n| x | 1 |"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_benchmark_takes_json(script):
    """But for what makes pages, and what only passes or fails."""
    text = script.read_text()
    ast.parse(text)
    assert script.name in ("pages.py", "random_kills.py") or '"--json"' in text or "add_json(" in text
