"""Verify, merge and split; and that verify finds what is wrong."""

import hashlib
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from token_images import BAD, GOOD, ODD, png, rows_of, skipped_of, write_tar

from gsqtok.tokens.crops import Crops
from gsqtok.tokens.edit import merge, split
from gsqtok.tokens.verify import decode_sample, verify


def shard(folder, number=1):
    return sorted((folder / "data").glob("*.parquet"))[number]


def rewrite(folder, change):
    """Change the rows of a shard, with a manifest that agrees with its new bytes."""
    path = shard(folder)
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (part,) = (part for part in manifest["units"] if part.get("file", "").endswith(path.name))
    part["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    part["rows"] = pq.read_metadata(path).num_rows
    (folder / "manifest.json").write_text(json.dumps(manifest))


def renamed(table):
    keys = ["x.png", *table["key"].to_pylist()[1:]]
    return table.set_column(0, "key", pa.array(keys))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda folder: shard(folder).write_bytes(shard(folder).read_bytes()[:-1]), "SHA-256 differs"),
        (lambda folder: shard(folder).unlink(), "No such file"),
        (lambda folder: (folder / "skipped.parquet").unlink(), "skipped.parquet: .*No such file"),
        (
            lambda folder: rewrite(folder, lambda t: t.slice(1)),
            "images written and skipped, 4 in the source",
        ),
        (lambda folder: rewrite(folder, renamed), "keys are not those of the source"),
        (lambda folder: rewrite(folder, lambda t: pa.concat_tables([t, t.slice(0, 1)])), "not every image has its"),
    ],
)
def test_verify_finds_damage(finished, damage, found):
    assert verify(finished) == []
    damage(finished)
    problems = verify(finished)
    assert len(problems) == 1
    assert re.search(found, problems[0])


def test_decode_sample(finished, tiny_tokenizer):
    sample = decode_sample(finished, tiny_tokenizer, 5)
    assert len(sample) == 5
    for key, size, image in sample:
        assert list(size) == rows_of(finished)[key, 0][2]
        assert image.shape == (3, 8, 8)
    assert len(decode_sample(finished, tiny_tokenizer, 1000)) == len(GOOD | ODD)


def test_split_then_merge_gives_everything_back(finished, tmp_path):
    first, second = split(finished, (tmp_path / "a", tmp_path / "b"), 0.6, seed=1)
    assert first["images"] + second["images"] == len(GOOD | ODD)
    assert 0 < first["images"] < len(GOOD | ODD)
    assert verify(tmp_path / "a") == verify(tmp_path / "b") == []
    assert not rows_of(tmp_path / "a").keys() & rows_of(tmp_path / "b").keys()
    assert skipped_of(tmp_path / "a") | skipped_of(tmp_path / "b") == skipped_of(finished)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "whole")
    assert verify(tmp_path / "whole") == []
    assert rows_of(tmp_path / "whole") == rows_of(finished)
    assert skipped_of(tmp_path / "whole").keys() == BAD.keys()
    with pytest.raises(FileExistsError):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "whole")


def test_split_keeps_crops_together(tmp_path, run):
    write_tar(tmp_path / "in.tar", [(f"{i}.png", png(i)) for i in range(12)])
    run(tmp_path / "in.tar", tmp_path / "tokens", crops=Crops(8, flip=True))
    split(tmp_path / "tokens", (tmp_path / "a", tmp_path / "b"), 0.5)
    for part in ("a", "b"):
        assert verify(tmp_path / part) == []


def test_merge_of_shared_keys_needs_prefixes(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    with pytest.raises(ValueError, match="occurs in two of the data sets"):
        merge([finished, tmp_path / "copy"], tmp_path / "both")
    merge([finished, tmp_path / "copy"], tmp_path / "both", prefix=True)
    assert verify(tmp_path / "both") == []
    keys = {key for key, _ in rows_of(tmp_path / "both")}
    assert keys == {f"{name}/{key}" for name in ("tokens", "copy") for key in GOOD | ODD}
    assert len(skipped_of(tmp_path / "both")) == 2 * len(BAD)


def test_merge_refuses_other_transforms(finished, tmp_path, run):
    write_tar(tmp_path / "in.tar", [("a.png", png(0))])
    run(tmp_path / "in.tar", tmp_path / "larger", crops=Crops(12))
    with pytest.raises(ValueError, match="they differ in transform"):
        merge([finished, tmp_path / "larger"], tmp_path / "both")
    with pytest.raises(ValueError, match="at least two"):
        merge([finished], tmp_path / "both")
    with pytest.raises(ValueError, match="fraction"):
        split(finished, (tmp_path / "a", tmp_path / "b"), 1.0)
