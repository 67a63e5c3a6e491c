"""Tokens of variable length: each position keeps groups of its own number, chosen from the latent."""

import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from token_images import GOOD, ODD, png, write_parquet

from gsqtok.cli import main
from gsqtok.data import ImageTransform, decode_image
from gsqtok.generation.train import vocabulary_of
from gsqtok.quantizers import quantizer_options
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig
from gsqtok.tokenizer.allocation import GroupAllocator
from gsqtok.tokens import Layout, TokenDataset
from gsqtok.tokens.allocation import FILE
from gsqtok.tokens.crops import Crops
from gsqtok.tokens.edit import merge, split
from gsqtok.tokens.layout import kept, restored
from gsqtok.tokens.manifest import read_manifest
from gsqtok.tokens.run import RunOptions, tokenize
from gsqtok.tokens.verify import decode_sample, verify

OPTIONS = RunOptions(Crops(16), shard_size=4, workers=0, max_pixels=10_000, mean_groups=2.5)


@pytest.fixture(scope="module")
def nested():
    torch.manual_seed(0)
    quantizer = quantizer_options("gsq", groups=4, codebook_size=256, nested="uniform")
    blocks = {"encoder_blocks": 0, "decoder_blocks": 0, "encoder_middle_blocks": 0, "decoder_middle_blocks": 0}
    config = TokenizerConfig(latent_dim=8, channels=32, multipliers=(1, 1, 1), quantizer=quantizer, **blocks)
    return ImageTokenizer(config).eval()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, data in (GOOD | ODD).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def once(nested, images, tmp_path_factory):
    """A data set at the bits of two and a half groups."""
    tokenize(nested, images, folder := tmp_path_factory.mktemp("once") / "tokens", OPTIONS, model="nested")
    return folder


@pytest.fixture
def written(once, tmp_path):
    return Path(shutil.copytree(once, tmp_path / "tokens"))


def test_rows_hold_what_is_kept_and_counts(written, nested):
    allocator, manifest = GroupAllocator.load(written / FILE, nested), read_manifest(written)
    rows = [row for unit in manifest["units"] for row in pq.read_table(written / unit["file"]).to_pylist()]
    assert {row["key"] for row in rows} == GOOD.keys() | ODD.keys()
    assert manifest["groups"] == 4
    assert manifest["tokens"] == sum(len(row["tokens"]) for row in rows)
    found = set()
    for row in rows:
        image = ImageTransform(16)(decode_image((GOOD | ODD)[row["key"]]))
        expected = nested.encode(image[None], groups=allocator)[0]
        assert expected.shape == (4, 4, 4)
        flat, counts = kept(expected.numpy())
        assert row["tokens"] == flat.tolist()
        assert row["counts"] == counts.tolist()
        assert row["grid"] == [4, 4, 4]
        assert torch.equal(restored(torch.tensor(row["tokens"]), torch.tensor(row["counts"]).view(4, 4), 4), expected)
        found |= set(row["counts"])
    assert len(found) > 1, "the choice is one"
    assert sum(len(row["tokens"]) for row in rows) <= 2.5 * 16 * len(rows), "the budget, all images having been seen"
    assert verify(written) == []
    assert [image.shape for *_, image in decode_sample(written, nested, 2)] == [(3, 16, 16)] * 2


@pytest.mark.parametrize(
    ("order", "vocabulary"), list(itertools.product(["grid", "interleaved", "raster"], ["shared", "offset"]))
)
def test_items_and_images(written, nested, order, vocabulary):
    plain, dataset = TokenDataset(written), TokenDataset(written, order=order, vocabulary=vocabulary)
    layout = Layout(4, 256, order, vocabulary)
    for grid, item in zip(plain, dataset, strict=True):
        there = grid["tokens"] >= 0
        assert torch.equal(item["counts"], there.sum(-1))
        if order == "grid":
            assert torch.equal(item["tokens"] >= 0, there)
        else:
            assert item["tokens"].shape == (int(item["counts"].sum()),)
            assert item["tokens"].min() >= 0
        assert item["tokens"].max() < dataset.vocab_size
        assert torch.equal(layout.restore(item["tokens"], counts=item["counts"]), grid["tokens"])
        decoded = dataset.decode(item["tokens"], nested, counts=item["counts"])
        assert torch.equal(decoded, nested.decode(grid["tokens"][None]))
    if order == "raster":
        with pytest.raises(ValueError, match="the counts say"):
            layout.restore(item["tokens"][1:], counts=item["counts"])


def test_another_data_set_chooses_likewise_and_a_run_goes_on(written, nested, images, tmp_path, monkeypatch):
    like = dataclasses.replace(OPTIONS, mean_groups=None, allocation=str(written / FILE))
    for rank in ("0", "1"):  # the second finds what the first has written
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        tokenize(nested, images, tmp_path / "other", like, model="nested")
    for ours, theirs in zip(TokenDataset(written), TokenDataset(tmp_path / "other"), strict=True):
        assert torch.equal(ours["tokens"], theirs["tokens"])
    monkeypatch.setattr("gsqtok.tokens.run.learn_allocation", None)  # nothing is learnt a second time
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert tokenize(nested, images, written, OPTIONS, model="nested").manifest["rows"] == len(TokenDataset(written))
    with pytest.raises(ValueError, match=r"begun with other settings.*mean groups was 2\.5, is 2"):
        tokenize(nested, images, written, dataclasses.replace(OPTIONS, mean_groups=2.0))
    merge([written, tmp_path / "other"], tmp_path / "both", prefix=True)
    first, second = tmp_path / "first", tmp_path / "second"
    split(tmp_path / "both", (first, second), 0.5)
    assert verify(tmp_path / "both") == verify(first) == verify(second) == []
    assert len(TokenDataset(first)) + len(TokenDataset(second)) == 2 * len(TokenDataset(written))
    tokenize(nested, images, tmp_path / "plain", dataclasses.replace(OPTIONS, mean_groups=None), model="nested")
    with pytest.raises(ValueError, match="cannot be merged: they differ in allocation"):
        merge([written, tmp_path / "plain"], tmp_path / "mixture", prefix=True)


def test_counts_that_no_grid_has_are_noticed(written, monkeypatch):
    monkeypatch.setattr("gsqtok.tokens.verify._check_hash", lambda *_: None)
    unit = next(unit for unit in read_manifest(written)["units"] if "file" in unit)
    table = pq.read_table(written / unit["file"])
    place = table.schema.get_field_index("counts")
    whole = table["counts"].to_pylist()
    for wrong, said in (
        ([[0, *whole[0][1:]], *whole[1:]], "a position has no group"),
        ([whole[0][1:], *whole[1:]], "counts for more or fewer positions"),
        ([[1 if whole[0][0] > 1 else 2, *whole[0][1:]], *whole[1:]], "more or fewer tokens than its grid"),
    ):
        changed = table.set_column(place, table.schema.field(place), pa.array(wrong, pa.list_(pa.uint8())))
        pq.write_table(changed, written / unit["file"])
        assert any(said in problem for problem in verify(written)), said


def test_what_is_refused(written, nested, tiny_tokenizer, images, tmp_path, capsys):
    with pytest.raises(ValueError, match="give one of them"):
        RunOptions(groups=2, mean_groups=2.5)
    for mean_groups, said in ((0.5, "above 1 and at most 4"), (4.5, "above 1 and at most 4"), (1.01, "leaves no bits")):
        with pytest.raises(ValueError, match=said):
            tokenize(nested, images, tmp_path / "no", RunOptions(Crops(16), workers=0, mean_groups=mean_groups))
    with pytest.raises(ValueError, match="need nested groups"):
        tokenize(tiny_tokenizer, images, tmp_path / "flat", RunOptions(Crops(16), workers=0, mean_groups=1.5))
    with pytest.raises(ValueError, match="a prior does not know: tokenize with --groups"):
        vocabulary_of(TokenDataset(written), None)
    with pytest.raises(ValueError, match="it is for the tokenizer"):
        GroupAllocator.load(written / FILE, tiny_tokenizer)
    (tmp_path / "noise").write_bytes(b"\x10" + bytes(40))
    with pytest.raises(ValueError, match="does not say how groups are chosen"):
        GroupAllocator.load(tmp_path / "noise", nested)
    with pytest.raises(FileNotFoundError):
        GroupAllocator.load(tmp_path / "nowhere", nested)
    for counts, tokens in (([[0, 1]], [3]), ([[1, 5]], [1] * 6), ([[1, 2]], [1, 2])):
        with pytest.raises(ValueError, match="counts"):
            restored(torch.tensor(tokens), torch.tensor(counts), 4)


def test_the_commands(nested, tmp_path, capsys):
    pytest.importorskip("constriction")
    nested.save_pretrained(tmp_path / "nested")
    write_parquet(tmp_path / "in.parquet", [png(i) for i in range(6)])
    model, source, out = (str(tmp_path / name) for name in ("nested", "in.parquet", "tokens"))
    sizes = ["--size", "16", "--workers", "0"]
    assert main(["tokenize", model, source, "-o", out, *sizes, "--mean-groups", "2.5"]) == 0
    assert main(["tokens", "verify", out, "--sample", "2"]) == 0
    assert main(["tokens", "info", out]) == 0
    assert "of which each position keeps its own" in capsys.readouterr().out
    other = ["-o", str(tmp_path / "other"), "--allocation", f"{out}/{FILE}"]
    assert main(["tokenize", model, source, *sizes, *other]) == 0
    file, back = str(tmp_path / "images.gsq"), str(tmp_path / "back")
    squares = ["--size", "16", "--crop", "center"]
    assert main(["compress", model, source, "-o", file, *squares, "--mean-groups", "2.5"]) == 0
    assert main(["decompress", model, file, "-o", back]) == 0
    restored_images = [
        np.asarray(decode_image(path.read_bytes())) for path in sorted((tmp_path / "back").rglob("*.png"))
    ]
    dataset = TokenDataset(out)
    assert len(restored_images) == len(dataset) == 6
    expected = [dataset.decode(item["tokens"], nested)[0] for item in dataset]
    for ours, image in zip(restored_images, expected, strict=True):
        assert np.abs(ours / 127.5 - 1 - image.movedim(0, -1).numpy()).max() < 0.01
    capsys.readouterr()
    assert main(["compress", model, source, "-o", file, *squares, "--mean-groups", "2", "--prior", "runs/none"]) == 1
    assert "--mean-groups goes without --prior" in capsys.readouterr().err
