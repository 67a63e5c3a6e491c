"""Writing token data sets in one process: every image once, restarts, refusals."""

import errno
import json
import os
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from token_images import (
    BAD,
    GOOD,
    MAX_PIXELS,
    ODD,
    hashes,
    png,
    rejects_of,
    rows_of,
    write_parquet,
    write_tar,
)

from gsqtok.data import ImageTransform, decode_image
from gsqtok.tokens import manifest as manifest_module
from gsqtok.tokens import plan
from gsqtok.tokens.run import RunOptions, tokenize
from gsqtok.tokens.verify import verify
from gsqtok.tokens.views import Views


def test_every_image_is_a_row_or_a_reject(mixed, tmp_path, run, tiny_tokenizer):
    result = run(mixed, tmp_path / "out")
    rows, rejects = rows_of(tmp_path / "out"), rejects_of(tmp_path / "out")
    assert {key for key, _ in rows} == GOOD.keys() | ODD.keys()
    assert rejects.keys() == BAD.keys()
    for name, (_, reason) in BAD.items():
        assert reason in rejects[name], name
    assert result.manifest["images"] == len(rows)
    assert verify(tmp_path / "out") == []
    for name, data in (GOOD | ODD).items():  # what the tokenizer gives for the image alone
        image = decode_image(data)
        tokens = tiny_tokenizer.encode(ImageTransform(8)(image)[None])[0]
        found, grid, size = rows[name, 0]
        assert (grid, size) == ([2, 2, 2], [image.height, image.width])
        assert np.array_equal(np.reshape(found, grid), tokens.numpy()), name


def test_shards_say_what_made_them_and_datasets_reads_them(mixed, tmp_path, run, tiny_tokenizer):
    run(mixed, tmp_path / "out")
    shards = sorted((tmp_path / "out" / "data").glob("*.parquet"))
    header = json.loads(pq.read_schema(shards[0]).metadata[b"gsqtok"])
    assert header["tokenizer"] == tiny_tokenizer.fingerprint()
    assert header["config"]["quantizer"]["codebook_size"] == 64
    assert header["transform"]["size"] == 8
    assert header["version"]
    loaded = datasets.load_dataset(
        "parquet", data_files=[str(s) for s in shards], split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.features["tokens"].feature.dtype == "uint8"
    assert loaded.cache_files  # memory-mapped Arrow
    assert {row["key"]: row["tokens"] for row in loaded} == {
        k: t for (k, _), (t, _, _) in rows_of(tmp_path / "out").items()
    }


def test_columns_are_carried_along(tmp_path, run):
    images = [GOOD["00.png"], BAD["text.jpg"][0], None, GOOD["01.png"], GOOD["02.png"]]
    write_parquet(tmp_path / "a.parquet", images, label=[5, 6, 7, 8, 9], caption=list("vwxyz"), other=[0.5] * 5)
    run(tmp_path / "a.parquet", tmp_path / "out", carry=("label", "caption", "missing"))
    table = pq.read_table(tmp_path / "out/data")
    assert table.column_names == ["key", "view", "tokens", "grid", "size", "label", "caption"]
    assert table.select(["key", "label", "caption"]).to_pylist() == [
        {"key": "a-000000", "label": 5, "caption": "v"},
        {"key": "a-000003", "label": 8, "caption": "y"},
        {"key": "a-000004", "label": 9, "caption": "z"},
    ]
    assert rejects_of(tmp_path / "out").keys() == {"a-000001", "a-000002"}


def test_native_aspect_pads_like_the_tokenizer(tmp_path, run, tiny_tokenizer):
    sizes = [(9, 16), (16, 9), (9, 13), (13, 10), (8, 8), (9, 15)]  # and one of a single position, below
    (tmp_path / "in").mkdir()
    for i, size in enumerate(sizes):
        (tmp_path / "in" / f"{i}.png").write_bytes(png(i, size))
    run(tmp_path / "in", tmp_path / "out", views=Views(None, "none"))
    for i, (width, height) in enumerate(sizes):
        tokens, grid, size = rows_of(tmp_path / "out")[f"{i}.png", 0]
        assert (grid, size) == ([-(-height // 4), -(-width // 4), 2], [height, width])
        image = ImageTransform(None, crop="none")(decode_image(png(i, (width, height))))
        assert np.array_equal(np.reshape(tokens, grid), tiny_tokenizer.encode(image[None])[0].numpy())
    (tmp_path / "one").mkdir()
    (tmp_path / "one/tiny.png").write_bytes(png(7, (3, 2)))
    run(tmp_path / "one", tmp_path / "one-out", views=Views(None, "none"))
    assert rows_of(tmp_path / "one-out")["tiny.png", 0][1] == [1, 1, 2]


def test_ten_crops_are_ten_rows_of_one_image(tmp_path, run):
    (tmp_path / "in").mkdir()
    for i in range(5):
        (tmp_path / "in" / f"{i}.png").write_bytes(png(i, (20, 30)))
    result = run(tmp_path / "in", tmp_path / "out", views=Views(8, "ten"))
    assert (result.manifest["images"], result.manifest["rows"]) == (5, 50)
    assert rows_of(tmp_path / "out").keys() == {(f"{i}.png", view) for i in range(5) for view in range(10)}
    assert verify(tmp_path / "out") == []


def test_a_repeated_command_encodes_nothing_twice(mixed, tmp_path, run, monkeypatch):
    run(mixed, tmp_path / "out")
    before = hashes(tmp_path / "out")
    (tmp_path / "out/manifest.json").unlink()
    lost = tmp_path / "out" / list(before)[1]
    lost.unlink()
    assert run(mixed, tmp_path / "out").figures["of"] == 4  # the lost shard alone
    assert hashes(tmp_path / "out") == before
    assert verify(tmp_path / "out") == []
    assert run(mixed, tmp_path / "out").figures["of"] == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"views": Views(12)}, "size was 8, is 12"),
        ({"views": Views(8, flip=True)}, "flip was false, is true"),
        ({"precision": "bfloat16"}, "precision was float32, is bfloat16"),
        ({"shard_size": 3}, "shard size was 4, is 3"),
    ],
)
def test_another_option_is_refused_with_both_fingerprints(mixed, tmp_path, run, change, named):
    run(mixed, tmp_path / "out")
    fingerprint = plan.fingerprint(plan.read_plan(tmp_path / "out").settings)
    with pytest.raises(ValueError, match="its fingerprint is") as refusal:
        run(mixed, tmp_path / "out", **change)
    assert fingerprint[:16] in str(refusal.value)
    assert named in str(refusal.value)


def test_another_model_or_source_is_refused(mixed, tmp_path, run, tiny_tokenizer):
    run(mixed, tmp_path / "out")
    (mixed / "new.png").write_bytes(png(99))
    with pytest.raises(ValueError, match="source was"):
        run(mixed, tmp_path / "out")
    (mixed / "new.png").unlink()
    with torch.no_grad():
        tiny_tokenizer.encoder.conv_in.weight.add_(1)
    with pytest.raises(ValueError, match="model was"):
        run(mixed, tmp_path / "out")


def test_a_full_disk_ends_the_run_and_the_next_goes_on(mixed, tmp_path, run, monkeypatch):
    real, calls = os.replace, []

    def replace(source, target):
        if "tokens-" in str(target):
            calls.append(target)
            if len(calls) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="No space left"):
            run(mixed, tmp_path / "out")
    with pytest.raises(ValueError, match=r"not finished: \d of 5 shards"):
        manifest_module.read_manifest(tmp_path / "out")
    run(mixed, tmp_path / "out")
    assert verify(tmp_path / "out") == []
    assert not list((tmp_path / "out").rglob(".*.tmp"))


def test_a_source_that_vanishes_is_an_error_and_no_heap_of_rejects(mixed, tmp_path, run):
    from gsqtok.tokens.sources import open_images

    source = open_images(mixed)
    ((span, _),) = source.spans(100)
    mixed.rename(tmp_path / "unmounted")
    with pytest.raises(FileNotFoundError):
        list(source.chunk(span).rows())


def test_a_image_that_vanishes_is_rejected(mixed, tmp_path):
    from gsqtok.tokens.sources import open_images

    source = open_images(mixed)
    ((span, _),) = source.spans(100)
    (mixed / "00.png").unlink()
    errors = {row.key: row.error for row in source.chunk(span).rows()}
    assert "No such file" in errors["00.png"]
    assert errors["01.png"] is None


def test_ranks_share_the_units_and_the_last_one_finishes(mixed, tmp_path, run, monkeypatch):
    run(mixed, tmp_path / "whole")
    monkeypatch.setenv("WORLD_SIZE", "9")  # more than there are units
    results = []
    for rank in range(9):
        monkeypatch.setenv("RANK", str(rank))
        results.append(run(mixed, tmp_path / "out"))
    assert [result.figures["of"] for result in results] == [4, 4, 4, 4, 4, 0, 0, 0, 0]
    assert [result.manifest is None for result in results] == [True] * 4 + [False] * 5
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_metrics_for_a_machine(mixed, tmp_path, run):
    run(mixed, tmp_path / "out")
    last = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])
    total = len(GOOD) + len(ODD) + len(BAD)
    assert (last["images"], last["of"], last["rejects"], last["finished"]) == (total, total, len(BAD), True)
    assert last["images_per_second"] > 0
    assert last["bytes_per_second"] > 0
    assert last["seconds_left"] == 0


IMAGES = st.one_of(
    st.builds(png, st.integers(0, 99), st.tuples(st.integers(1, 30), st.integers(1, 30))),
    st.sampled_from([data for data, _ in BAD.values()]),
    st.binary(max_size=20),
)
NAMES = st.sampled_from(["a", "b", "a/b", "ü猫", "x y", "a#2", "c"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    images=st.lists(st.tuples(NAMES, IMAGES), min_size=1, max_size=9),
    kind=st.sampled_from(["folder", "tar", "tgz", "parquet"]),
    shard_size=st.integers(1, 5),
    views=st.sampled_from([Views(8), Views(8, flip=True), Views(None, "none"), Views(8, "none")]),
)
def test_any_source_ends_in_rows_or_rejects_once(tiny_tokenizer, images, kind, shard_size, views):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "folder":
            for number, (stem, data) in enumerate(images):
                path = folder / "in" / f"{stem}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            source = folder / "in"
        elif kind == "parquet":
            source = write_parquet(folder / "in.parquet", [data for _, data in images])
        else:
            source = write_tar(folder / f"in.{kind}", [(f"{stem}.png", data) for stem, data in images])
        options = RunOptions(views=views, shard_size=shard_size, workers=0, max_pixels=MAX_PIXELS)
        tokenize(tiny_tokenizer, source, folder / "out", options)
        rows, rejects = rows_of(folder / "out"), rejects_of(folder / "out")
        keys = {key for key, _ in rows}
        assert len(rows) == views.number * len(keys)
        assert not keys & rejects.keys()
        assert len(keys) + len(rejects) == len(images)
        assert verify(folder / "out") == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "agree"), [("float32", 0.98), ("bfloat16", 0.6)])
def test_on_a_gpu(mixed, tmp_path, run, tiny_tokenizer, precision, agree):
    run(mixed, tmp_path / "cpu")
    options = RunOptions(views=Views(8), shard_size=4, workers=2, max_pixels=MAX_PIXELS, precision=precision)
    tokenize(tiny_tokenizer.to("cuda"), mixed, tmp_path / "gpu", options)
    one, other = rows_of(tmp_path / "cpu"), rows_of(tmp_path / "gpu")
    assert one.keys() == other.keys()
    assert rejects_of(tmp_path / "cpu") == rejects_of(tmp_path / "gpu")
    same = [np.equal(one[key][0], other[key][0]).mean() for key in one]
    assert np.mean(same) > agree
    assert verify(tmp_path / "gpu") == []


def test_tiles_give_the_tokens_of_the_whole(mixed, tmp_path, run):
    views = Views(None, "none")
    run(mixed, tmp_path / "whole", views=views)
    run(mixed, tmp_path / "tiles", views=views, tile=4)
    whole, tiles = (rows_of(tmp_path / name) for name in ("whole", "tiles"))
    assert tiles.keys() == whole.keys()
    assert any(grid[0] > 2 or grid[1] > 2 for _, grid, _ in whole.values())  # more than a tile, before down-sampling
    for row, (tokens, grid, size) in whole.items():
        assert tiles[row][1:] == (grid, size)
        assert np.mean(np.array(tiles[row][0]) == np.array(tokens)) > 0.99, row  # but for latents at a border
    assert rejects_of(tmp_path / "tiles") == rejects_of(tmp_path / "whole")
    assert verify(tmp_path / "tiles") == []
    with pytest.raises(ValueError, match="tile was 4, is null"):  # rounding elsewhere may move a token
        run(mixed, tmp_path / "tiles", views=views)


@pytest.mark.parametrize(
    ("options", "message"), [({"tile": 7}, "even"), ({"tile": 0}, "even"), ({"tile": 8, "compile": True}, "compile")]
)
def test_tiles_that_cannot_be(mixed, tmp_path, run, options, message):
    with pytest.raises(ValueError, match=message):
        run(mixed, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()  # no plan that the right command would be held to
