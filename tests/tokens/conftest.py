import shutil

import pytest
from token_images import BAD, GOOD, MAX_PIXELS, ODD

from gsqtok.tokens.crops import Crops
from gsqtok.tokens.run import RunOptions, tokenize


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Unpacked shards go to a folder of the test."""
    monkeypatch.setenv("GSQTOK_CACHE", str(tmp_path_factory.mktemp("token-cache")))


@pytest.fixture
def mixed(tmp_path):
    """A folder with good, odd and bad images."""
    root = tmp_path / "mixed"
    for name, data in (GOOD | ODD | {name: data for name, (data, _) in BAD.items()}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.fixture
def run(tiny_tokenizer):
    """Tokenize in this process, small and alone."""

    def call(source, output, **options):
        defaults = {"crops": Crops(8), "shard_size": 4, "workers": 0, "max_pixels": MAX_PIXELS}
        return tokenize(tiny_tokenizer, source, output, RunOptions(**defaults | options))

    return call


@pytest.fixture
def model(tmp_path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def command(model):
    """The arguments of ``gsqtok`` that do what ``run`` does."""

    def make(source, output, *more):
        options = ["--size", "8", "--shard-size", "4", "--workers", "0", "--max-pixels", str(MAX_PIXELS)]
        return ["tokenize", str(model), str(source), "-o", str(output), *options, *map(str, more)]

    return make


@pytest.fixture
def finished(mixed, tmp_path, run):
    """A finished data set of ``mixed``."""
    run(mixed, tmp_path / "tokens")
    shutil.rmtree(mixed)
    return tmp_path / "tokens"
