"""The example learns, from two images, to tell what is masked."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gsqtok.tokens.crops import Crops
from gsqtok.tokens.run import RunOptions, tokenize

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_from_tokens.py"


def test_it_learns_and_draws(tmp_path, tiny_tokenizer, monkeypatch):
    monkeypatch.setenv("GSQTOK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in").mkdir()
    for name, seed in (("a.png", 0), ("b.png", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    options = RunOptions(crops=Crops(16), workers=0)
    tokenize(tiny_tokenizer, tmp_path / "in", tmp_path / "tokens", options, model=str(tmp_path / "model"))

    spec = importlib.util.spec_from_file_location("train_from_tokens", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    small = ["--batch-size", "8", "--width", "64", "--depth", "1", "--learning-rate", "5e-3"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = example.main([str(tmp_path / "tokens"), *small, "--steps", "1"])
        last = example.main([str(tmp_path / "tokens"), *small, "--steps", "150", "--output", str(tmp_path / "out.png")])
    assert 5 < first < 8  # about log2 64 = 6 bits: it knows nothing
    assert last < 1.5  # which of two images it is: 1 bit at most where all is masked, else none
    assert Image.open(tmp_path / "out.png").size == (4 * 18 + 2, 4 * 18 + 2)
