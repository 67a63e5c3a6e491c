"""gsqtok doctor: what works is said, what is broken is named and ends with status 1."""

import torch

import gsqtok.search
from gsqtok.cli import doctor, main


def test_all_is_well(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "missing", lambda extra: ["accelerate"] if extra == "train" else [])
    assert main(["doctor"]) == 0
    said = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    said = {name: text.strip() for name, text in said.items()}
    assert said["torch"] == torch.__version__.split("+")[0]
    assert said["cpu search"].startswith("exact, by ")
    assert said["cpu tokenizer"].startswith("an image comes back at ")
    assert said["weights of pretrained/f8"] == "here"
    assert said["extra train"] == "without accelerate: pip install 'gsqtok[train]'"
    assert said["extra app"] == "installed"


def test_what_is_broken_is_named(capsys, monkeypatch):
    monkeypatch.setattr(gsqtok.search, "nearest", lambda z, c, **options: torch.zeros(len(z), dtype=torch.int64))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "BROKEN: 20" in said
    assert "nearest codewords are wrong at d = 1, V = 512" in said
    assert said.endswith("broken: cpu search\n")


def test_a_package_that_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(doctor.CORE, "no-such-package", "no_such_package")
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "BROKEN: No module named 'no_such_package'" in said
    assert "extra train" in said
