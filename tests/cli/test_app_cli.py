"""``gsqtok app``: what it hands to the server, and what it says without Gradio."""

import sys

import pytest

from gsqtok.cli import main


class Page:
    def block_thread(self):
        pass


def test_models_get_labels_and_the_page_stays_on_this_machine(monkeypatch, tmp_path, tiny_tokenizer):
    serve = pytest.importorskip("gsqtok.app.serve", exc_type=ImportError)
    calls = []
    monkeypatch.setattr(
        serve,
        "serve",
        lambda tokenizers, **options: calls.append((tokenizers, options)) or (Page(), "http://127.0.0.1:7860/"),
    )
    for folder in ("a", "b"):
        tiny_tokenizer.save_pretrained(tmp_path / folder / "mine")
    folders = [str(tmp_path / folder / "mine") for folder in ("a", "b")]
    assert main(["app", *folders, "--device", "cpu", "--max-pixels", "100"]) == 0
    ((tokenizers, options),) = calls
    assert list(tokenizers) == ["mine", folders[1]]
    assert options == {"host": "127.0.0.1", "port": None, "max_pixels": 100, "max_mb": 20}


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("gsqtok.app.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 1
    assert "pip install 'gsqtok[app]'" in capsys.readouterr().err
