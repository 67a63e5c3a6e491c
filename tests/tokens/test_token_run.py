"""Writing token data sets in one process: every image once, restarts, refusals."""

import errno
import json
import os
import tempfile
from pathlib import Path

import datasets
import filelock
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
    rows_of,
    skipped_of,
    write_parquet,
    write_tar,
)

from gsqtok.data import ImageTransform, decode_image
from gsqtok.tokens import manifest as manifest_module
from gsqtok.tokens import plan
from gsqtok.tokens.crops import Crops
from gsqtok.tokens.run import RunOptions, tokenize
from gsqtok.tokens.verify import verify


def test_every_image_is_a_row_or_skipped(mixed, tmp_path, run, tiny_tokenizer):
    result = run(mixed, tmp_path / "out")
    rows, skipped = rows_of(tmp_path / "out"), skipped_of(tmp_path / "out")
    assert {key for key, _ in rows} == GOOD.keys() | ODD.keys()
    assert skipped.keys() == BAD.keys()
    for name, (_, reason) in BAD.items():
        assert reason in skipped[name], name
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
    assert header["tokenizer"] == tiny_tokenizer.tokens_fingerprint()
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


def test_extra_columns(tmp_path, run):
    images = [GOOD["00.png"], BAD["text.jpg"][0], None, GOOD["01.png"], GOOD["02.png"]]
    write_parquet(tmp_path / "a.parquet", images, label=[5, 6, 7, 8, 9], caption=list("vwxyz"), other=[0.5] * 5)
    run(tmp_path / "a.parquet", tmp_path / "out", columns=("label", "caption", "missing"))
    table = pq.read_table(tmp_path / "out/data")
    assert table.column_names == ["key", "crop", "tokens", "grid", "size", "label", "caption"]
    assert table.select(["key", "label", "caption"]).to_pylist() == [
        {"key": "a-000000", "label": 5, "caption": "v"},
        {"key": "a-000003", "label": 8, "caption": "y"},
        {"key": "a-000004", "label": 9, "caption": "z"},
    ]
    assert skipped_of(tmp_path / "out").keys() == {"a-000001", "a-000002"}


def test_native_aspect_pads_like_the_tokenizer(tmp_path, run, tiny_tokenizer):
    sizes = [(9, 16), (16, 9), (9, 13), (13, 10), (8, 8), (9, 15)]  # and one of a single position, below
    (tmp_path / "in").mkdir()
    for i, size in enumerate(sizes):
        (tmp_path / "in" / f"{i}.png").write_bytes(png(i, size))
    run(tmp_path / "in", tmp_path / "out", crops=Crops(None, "none"))
    for i, (width, height) in enumerate(sizes):
        tokens, grid, size = rows_of(tmp_path / "out")[f"{i}.png", 0]
        assert (grid, size) == ([-(-height // 4), -(-width // 4), 2], [height, width])
        image = ImageTransform(None, crop="none")(decode_image(png(i, (width, height))))
        assert np.array_equal(np.reshape(tokens, grid), tiny_tokenizer.encode(image[None])[0].numpy())
    (tmp_path / "one").mkdir()
    (tmp_path / "one/tiny.png").write_bytes(png(7, (3, 2)))
    run(tmp_path / "one", tmp_path / "one-out", crops=Crops(None, "none"))
    assert rows_of(tmp_path / "one-out")["tiny.png", 0][1] == [1, 1, 2]


def test_ten_crops_are_ten_rows_of_one_image(tmp_path, run):
    (tmp_path / "in").mkdir()
    for i in range(5):
        (tmp_path / "in" / f"{i}.png").write_bytes(png(i, (20, 30)))
    result = run(tmp_path / "in", tmp_path / "out", crops=Crops(8, "ten"))
    assert (result.manifest["images"], result.manifest["rows"]) == (5, 50)
    assert rows_of(tmp_path / "out").keys() == {(f"{i}.png", crop) for i in range(5) for crop in range(10)}
    assert verify(tmp_path / "out") == []


def test_a_repeated_command_encodes_nothing_twice(mixed, tmp_path, run, monkeypatch):
    run(mixed, tmp_path / "out")
    before = hashes(tmp_path / "out")
    (tmp_path / "out/manifest.json").unlink()
    lost = tmp_path / "out" / list(before)[1]
    lost.unlink()
    assert run(mixed, tmp_path / "out").metrics["of"] == 4  # the lost shard alone
    assert hashes(tmp_path / "out") == before
    assert verify(tmp_path / "out") == []
    assert run(mixed, tmp_path / "out").metrics["of"] == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"crops": Crops(12)}, "size was 8, is 12"),
        ({"crops": Crops(8, flip=True)}, "flip was false, is true"),
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


def test_ranks_share_the_units_and_the_last_one_finishes(mixed, tmp_path, run, monkeypatch):
    run(mixed, tmp_path / "whole")
    monkeypatch.setenv("WORLD_SIZE", "9")  # more than there are units
    results = []
    for rank in range(9):
        monkeypatch.setenv("RANK", str(rank))
        results.append(run(mixed, tmp_path / "out"))
    assert [result.metrics["of"] for result in results] == [4, 4, 4, 4, 4, 0, 0, 0, 0]
    assert [result.manifest is None for result in results] == [True] * 4 + [False] * 5
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_nothing_but_skipped_images_is_an_error(tmp_path, run):
    (tmp_path / "in").mkdir()
    for name in ("text.jpg", "empty.png"):
        (tmp_path / "in" / name).write_bytes(BAD[name][0])
    for _ in range(2):  # the second run has nothing to do, and is no success either
        with pytest.raises(ValueError, match=r"none of the 2 images can be read: see .*skipped\.parquet"):
            run(tmp_path / "in", tmp_path / "out")
    assert skipped_of(tmp_path / "out").keys() == {"text.jpg", "empty.png"}
    assert verify(tmp_path / "out") == []


def test_output_inside_the_source_is_refused(mixed, run):
    for output in (mixed, mixed / "tokens"):
        with pytest.raises(ValueError, match="lies in the source"):
            run(mixed, output)
    assert not (mixed / "tokens").exists()


def test_a_second_run_in_the_same_folder_is_refused(mixed, tmp_path, run):
    (tmp_path / "out").mkdir()
    with filelock.FileLock(tmp_path / "out" / ".rank-0.lock"), pytest.raises(ValueError, match="is being written by"):
        run(mixed, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".rank-0.lock"]
    run(mixed, tmp_path / "out")
    assert verify(tmp_path / "out") == []


def test_metrics_for_a_machine(mixed, tmp_path, run):
    run(mixed, tmp_path / "out")
    last = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])
    total = len(GOOD) + len(ODD) + len(BAD)
    assert (last["images"], last["of"], last["skipped"], last["finished"]) == (total, total, len(BAD), True)
    assert last["images_per_second"] > 0
    assert last["bytes_per_second"] > 0
    assert last["seconds_left"] == 0


IMAGES = st.one_of(
    st.builds(png, st.integers(0, 99), st.tuples(st.integers(1, 30), st.integers(1, 30))),
    st.sampled_from([data for data, _ in BAD.values()]),
    st.binary(max_size=20),
)
NAMES = st.sampled_from(["a", "b", "a/b", "ü猫", "x y", "a#2", "c"])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    images=st.lists(st.tuples(NAMES, IMAGES), min_size=1, max_size=9),
    kind=st.sampled_from(["folder", "tar", "tgz", "parquet"]),
    shard_size=st.integers(1, 5),
    crops=st.sampled_from([Crops(8), Crops(8, flip=True), Crops(None, "none"), Crops(8, "none")]),
)
def test_any_source_ends_in_rows_or_skipped_once(tiny_tokenizer, images, kind, shard_size, crops):
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
        options = RunOptions(crops=crops, shard_size=shard_size, workers=0, max_pixels=MAX_PIXELS)
        nothing = ""
        try:
            tokenize(tiny_tokenizer, source, folder / "out", options)
        except ValueError as error:
            nothing = str(error)
        rows, skipped = rows_of(folder / "out"), skipped_of(folder / "out")
        keys = {key for key, _ in rows}
        assert ("images can be read" in nothing) is (not keys), nothing
        assert len(rows) == crops.number * len(keys)
        assert not keys & skipped.keys()
        assert len(keys) + len(skipped) == len(images)
        assert verify(folder / "out") == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "agree"), [("float32", 0.98), ("bfloat16", 0.6)])
def test_on_a_gpu(mixed, tmp_path, run, tiny_tokenizer, precision, agree):
    run(mixed, tmp_path / "cpu")
    options = RunOptions(crops=Crops(8), shard_size=4, workers=2, max_pixels=MAX_PIXELS, precision=precision)
    tokenize(tiny_tokenizer.to("cuda"), mixed, tmp_path / "gpu", options)
    one, other = rows_of(tmp_path / "cpu"), rows_of(tmp_path / "gpu")
    assert one.keys() == other.keys()
    assert skipped_of(tmp_path / "cpu") == skipped_of(tmp_path / "gpu")
    same = [np.equal(one[key][0], other[key][0]).mean() for key in one]
    assert np.mean(same) > agree
    assert verify(tmp_path / "gpu") == []


def test_tiles_give_the_tokens_of_the_whole(mixed, tmp_path, run):
    crops = Crops(None, "none")
    run(mixed, tmp_path / "whole", crops=crops)
    run(mixed, tmp_path / "tiles", crops=crops, tile=4)
    whole, tiles = (rows_of(tmp_path / name) for name in ("whole", "tiles"))
    assert tiles.keys() == whole.keys()
    assert any(grid[0] > 2 or grid[1] > 2 for _, grid, _ in whole.values())  # more than a tile, before down-sampling
    for row, (tokens, grid, size) in whole.items():
        assert tiles[row][1:] == (grid, size)
        assert np.mean(np.array(tiles[row][0]) == np.array(tokens)) > 0.99, row  # but for latents at a border
    assert skipped_of(tmp_path / "tiles") == skipped_of(tmp_path / "whole")
    assert verify(tmp_path / "tiles") == []
    with pytest.raises(ValueError, match="tile was 4, is null"):  # rounding elsewhere may move a token
        run(mixed, tmp_path / "tiles", crops=crops)


@pytest.mark.parametrize(("options", "message"), [({"tile": 7}, "even"), ({"tile": 0}, "even")])
def test_tiles_that_cannot_be(mixed, tmp_path, run, options, message):
    with pytest.raises(ValueError, match=message):
        run(mixed, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()  # no plan that the right command would be held to
