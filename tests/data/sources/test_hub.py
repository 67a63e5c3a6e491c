"""Data sets of the hub, whole and streamed; the hub itself is a stand-in."""

import numpy as np
import pytest

from gsqtok.data import decode_pixels, open_source


def rows(source):
    return [row for span in source.spans() for row in source.rows(span)]


@pytest.fixture
def hub(monkeypatch, noise):
    """A stand-in for the network: data sets as ``load_dataset`` returns them."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    train = datasets.Dataset.from_dict({"img": list(map(noise, range(5))), "label": [0, 1, 0, 1, 0]}, features=features)
    splits = {"train": train, "test": train.select([4])}

    def load(name, split=None, streaming=False):
        if name == "owner/absent":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/absent' doesn't exist\non the Hub")
        if name == "owner/offline":
            raise ConnectionError("Couldn't reach the Hub")
        if split not in (None, *splits):
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
        chosen = {k: v.to_iterable_dataset(num_shards=min(2, len(v))) if streaming else v for k, v in splits.items()}
        if name == "owner/single":
            chosen.pop("test")
        return chosen[split] if split else datasets.DatasetDict(chosen)

    monkeypatch.setattr(datasets, "load_dataset", load)


def test_hub(hub, noise):
    found = rows(open_source("owner/name", split="train"))
    assert [row.key for row in found] == [f"train-{i:06d}" for i in range(5)]
    assert all(np.array_equal(decode_pixels(row.data), noise(i)) for i, row in enumerate(found))
    assert open_source("owner/name", split="test").all_keys() == ["test-000000"]
    assert open_source("owner/single").all_keys()[-1] == "train-000004"
    keys = [f"train-{key}" for key in ("00000-000000", "00000-000001", "00000-000002", "00001-000000", "00001-000001")]
    streamed = open_source("owner/name", split="train", streaming=True, columns=("label",))
    assert [row.key for row in rows(streamed)] == keys
    assert [row.columns["label"] for row in rows(streamed)] == [0, 1, 0, 1, 0]
    assert streamed.digest != open_source("owner/name", split="train").digest


def test_hub_beside_a_folder(hub, folder):
    source = open_source(["owner/single", folder])
    assert source.all_keys() == [f"single/train-{i:06d}" for i in range(5)] + [f"images/{i:02d}.png" for i in range(10)]
    assert len(rows(source)) == len(source) == 15
    streamed = open_source([folder, "owner/single"], streaming=True)
    assert not streamed.counted
    assert [row.key for row in rows(streamed)][9:11] == ["images/09.png", "single/train-00000-000000"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "owner/absent",
            FileNotFoundError,
            "no file or folder 'owner/absent' here, and no hub data set 'owner/absent'",
        ),
        ("owner/offline", FileNotFoundError, "Couldn't reach the Hub"),
        ("owner/name", ValueError, "has several splits: name one with split .*, which may be train, test"),
    ],
)
def test_hub_errors(hub, name, error, message):
    with pytest.raises(error, match=message) as caught:
        open_source(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="Unknown split"):
        open_source("owner/name", split="dev")
