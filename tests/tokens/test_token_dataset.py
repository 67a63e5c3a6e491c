import itertools

import numpy as np
import pytest
import torch
from token_images import png, rows_of, write_parquet
from torch.utils.data import DataLoader

import gsqtok
from gsqtok.data import EpochSampler
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokens import Layout, TokenDataset

ROWS = 11


@pytest.fixture
def folder(tmp_path, run):
    captions = [f"number {i}" if i % 2 else None for i in range(ROWS)]
    write_parquet(tmp_path / "in.parquet", [png(i) for i in range(ROWS)], label=list(range(ROWS)), caption=captions)
    run(tmp_path / "in.parquet", tmp_path / "tokens", columns=("label", "caption"))
    return tmp_path / "tokens"


def test_items_are_the_rows(folder):
    dataset = gsqtok.TokenDataset(folder, columns=("key", "label", "caption", "size"))
    assert len(dataset) == ROWS
    expected = rows_of(folder)
    for i, item in enumerate(dataset):
        tokens, grid, size = expected[item["key"], 0]
        assert item["tokens"].dtype == torch.int64
        assert np.array_equal(item["tokens"], np.reshape(tokens, grid))
        assert (item["label"], item["size"]) == (i, size)
        assert item["caption"] == (f"number {i}" if i % 2 else None)
    assert torch.equal(dataset[-1]["tokens"], dataset[ROWS - 1]["tokens"])
    assert torch.equal(dataset[(7, 3)]["tokens"], dataset[3]["tokens"])
    with pytest.raises(IndexError):
        dataset[ROWS]
    with pytest.raises(ValueError, match="no column 'lable'"):
        TokenDataset(folder, columns=("lable",))


def test_tokens_come_from_a_mapped_file(folder, tmp_path):
    dataset = TokenDataset(folder, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()  # opening reads the manifest alone
    grid = dataset._shard(0).grid(0)
    assert not grid.flags.owndata
    assert not grid.flags.writeable
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    TokenDataset(folder, cache=tmp_path / "cache")[0]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == before


@pytest.mark.parametrize("order", ["grid", "interleaved", "raster"])
@pytest.mark.parametrize("vocabulary", ["shared", "offset"])
def test_decode_gives_images(folder, tiny_tokenizer, order, vocabulary):
    dataset = TokenDataset(folder, order=order, vocabulary=vocabulary)
    assert dataset.vocab_size == Layout(2, 64, order, vocabulary).vocab_size
    batch = torch.stack([dataset[i]["tokens"] for i in range(3)])
    grids = torch.stack([TokenDataset(folder)[i]["tokens"] for i in range(3)])
    torch.testing.assert_close(dataset.decode(batch, tiny_tokenizer), tiny_tokenizer.decode(grids))


def test_decode_with_the_wrong_tokenizer(folder, tiny_config):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = ImageTokenizer(tiny_config).eval()
    with pytest.raises(ValueError, match="name the same model"):
        TokenDataset(folder).decode(torch.zeros(1, 2, 2, 2, dtype=torch.int64), other)


def labels(items):
    return [item["label"] for item in items]


def test_stream_is_a_permutation_of_each_epoch(folder):
    stream = TokenDataset(folder, columns=("label",)).stream(seed=3)
    first, second = labels(stream), labels(stream)
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second
    stream.set_epoch(0)
    assert labels(stream) == first
    assert labels(TokenDataset(folder, columns=("label",)).stream(seed=4)) != first
    assert labels(TokenDataset(folder, columns=("label",)).stream(seed=None)) == list(range(ROWS))


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_share_an_epoch(folder, workers):
    dataset = TokenDataset(folder, columns=("label",))
    parts = []
    for rank in range(3):
        stream = dataset.stream(seed=1, rank=rank, world_size=3)
        parts.append(labels(DataLoader(stream, batch_size=None, num_workers=workers)))
    assert sorted(itertools.chain(*parts)) == list(range(ROWS))
    assert {len(part) for part in parts} <= {3, 4}
    if workers == 0:
        whole = labels(dataset.stream(seed=1))
        assert [whole[rank::3] for rank in range(3)] == parts


def test_resume_inside_an_epoch(folder):
    dataset = TokenDataset(folder, columns=("label",))
    whole = dataset.stream(seed=2)
    expected = labels(whole) + labels(whole)
    for stop in (1, 5, ROWS - 1, ROWS + 4):
        stream = dataset.stream(seed=2)
        got = labels(itertools.islice(stream, min(stop, ROWS)))
        if stop > ROWS:
            labels(stream)  # what ends the epoch
            got += labels(itertools.islice(stream, stop - ROWS))
        resumed = dataset.stream(seed=2)
        resumed.load_state_dict(stream.state_dict())
        rest = labels(resumed)
        assert got + rest == expected[: len(got) + len(rest)], stop
        assert (len(got) + len(rest)) % ROWS == 0


def test_epoch_sampler_resumes_with_any_number_of_workers(folder):
    dataset = TokenDataset(folder, columns=("label",))

    def batches(start, count, workers):
        sampler = EpochSampler(len(dataset), 4, seed=6, start_step=start)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers)
        return [batch["label"].tolist() for batch in itertools.islice(loader, count)]

    assert batches(0, 3, 0) + batches(3, 3, 2) == batches(0, 6, 0)


def test_wrong_arguments(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        TokenDataset(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="not written by gsqtok"):
        TokenDataset(tmp_path / "empty")
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="not finished: 4 of 4 shards; repeat gsqtok tokenize"):
        TokenDataset(folder)
