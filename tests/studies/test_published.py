"""What the documentation says of results is what its scripts make of the JSON files."""

import importlib
import math
from pathlib import Path

import pytest

from gsqtok.studies import study
from gsqtok.studies.study import Finding
from gsqtok.studies.table import Row, Table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scripts(monkeypatch):
    """The modules docs/plots/results.py and docs/plots/claims.py."""
    monkeypatch.syspath_prepend(str(ROOT / "docs/plots"))
    return importlib.import_module("results"), importlib.import_module("claims")


def test_results_say_what_the_json_files_say(scripts):
    results, _ = scripts
    for page in results.PAGES:
        assert results.filled(page) == page.read_text("utf-8"), "run python docs/plots/results.py"


def test_claims_say_what_the_json_files_say(scripts):
    _, claims = scripts
    page = (ROOT / "docs/claims.md").read_text("utf-8")
    assert claims.page() == page, "run python docs/plots/claims.py"


def test_what_one_seed_may_do_is_what_three_seeds_did(scripts):
    results, _ = scripts
    measured = {
        "psnr": results.noise("psnr", False),
        "usage": results.noise("usage", True),
        "frechet_distance": results.noise("frechet_distance_tf_efficientnet_lite1", True),
        "bits_per_pixel_entropy": results.noise("bits_per_pixel_entropy", True),
    }
    assert measured.keys() == study.BEYOND_SEEDS.keys()
    for metric, least in study.BEYOND_SEEDS.items():
        assert 0.85 * least < measured[metric] <= least, metric


def test_noise_of_two_runs(scripts, monkeypatch):
    """Twice the standard deviation of a difference of two draws with variance 1 is 2 sqrt(2)."""
    results, _ = scripts
    monkeypatch.setattr("said.spreads", lambda metric, relative: [0.5, math.sqrt(2 - 0.25)])
    assert results.noise("psnr", False) == pytest.approx(2 * math.sqrt(2))


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (("supported", "supported"), "supported"),
        (("supported", "undecided"), "undecided"),
        (("supported", "not supported"), "undecided"),
        (("undecided", "not supported"), "not supported"),
        (("not tested",), "not tested at this scale"),
        ((), "not tested at this scale"),
    ],
)
def test_a_verdict_follows_from_its_findings(scripts, monkeypatch, found, verdict):
    _, claims = scripts
    monkeypatch.setattr(claims, "findings", lambda evidence: [Finding("so it is", said) for said in found])
    claim = claims.Claim("so it is", (claims.Evidence("isolate-small", ""),))
    assert claims.verdict(claim) == verdict


def test_evidence_to_the_contrary_and_evidence_that_is_not_there(scripts, monkeypatch):
    _, claims = scripts
    known = (
        Table("isolate", "small", [Row({"V": 4, "seed": s}, {}, "done") for s in (0, 1)]),
        [Finding("a", "supported")],
    )
    monkeypatch.setattr(claims, "results", lambda name: known if name == "isolate-small" else None)
    (turned,) = claims.findings(claims.Evidence("isolate-small", "^a$", contrary=True))
    assert (turned.claim, turned.verdict) == ("not: a", "not supported")
    with pytest.raises(SystemExit, match="no finding 'b'"):
        claims.findings(claims.Evidence("isolate-small", "b"))
    assert claims.seeds("isolate-small") == "2 seeds"
    assert "gsqtok study factor --scale paper" in claims.block(
        claims.Claim("b", (claims.Evidence("factor-paper", "b"),))
    )


def test_text_stops_where_its_verdict_has_changed(scripts):
    results, _ = scripts
    said = results.Said("isolate")
    said.needs("supported", "start and norm together help over a uniform start, no norm, one group")
    with pytest.raises(SystemExit, match="rewrite it"):
        said.needs("undecided", "start and norm together help over a uniform start, no norm, one group")


def test_a_study_that_was_run_later_has_its_section(scripts, monkeypatch, tmp_path):
    results, _ = scripts
    monkeypatch.setattr("said.DOCS", tmp_path)
    assert results.by_itself("start-small") == ""
    table = Table.load(ROOT / "docs/studies/isolate-small/results.json")
    table.save(tmp_path / "studies/isolate-small/results.json")
    text = results.by_itself("isolate-small")
    assert "| uniform | none | 1 | 65,536 | 0.250 | 17.26 |" in text
    assert "no norm, one group | supported | 17.26 to 18.81 dB" in text
