"""Crops of several sizes in a training."""

import dataclasses
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from gsqtok.training import CropConfig, Trainer, train

CROPS = (CropConfig(8, 0.4, (1, 2)), CropConfig(16, 0.6))
MIXED = {"crops": CROPS, "max_resize": None}


def test_every_step_has_as_many_pixels(tiny):
    trainer = Trainer(tiny(data=MIXED))
    batches = [batch["image"] for batch in islice(trainer.batches(), 10)]
    assert {batch.shape[1] for batch in batches} == {8, 16}
    assert {batch.numel() for batch in batches} == {4 * 16 * 16 * 3}
    assert [images.shape for images in trainer.sample_images()] == [(16, 3, 8, 8), (4, 3, 16, 16)]


@pytest.mark.parametrize("parts", [1, 2])
def test_goes_on_with_the_same_bits(tiny, tmp_path, metrics, parts):
    """Also where images are decoded anew in one run, and kept in the other."""

    def weights(name, **changes):
        run = {"output": str(tmp_path / name), "gradient_accumulation": parts}
        config = tiny(data=MIXED | changes.pop("data", {}), **run | changes)
        train(config, resume=True)
        return load_file(tmp_path / name / "tokenizer/model.safetensors")

    whole = weights("whole")
    weights("halves", steps=3)
    halves = weights("halves", data={"cache": str(tmp_path / "decoded")})
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    losses = [[line["loss/total"] for line in metrics(tmp_path / name)] for name in ("whole", "halves")]
    assert losses[0] == losses[1]


def test_other_crops_are_refused_when_resuming(tiny):
    config = tiny(data=MIXED, steps=1)
    train(config)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, crops=CROPS[1:]))
    with pytest.raises(ValueError, match=r"was started with data.crops = .*'size': 8"):
        train(other, resume=True)


def test_a_source_of_several_splits_names_the_option(tiny, tmp_path):
    for name in ("train-0.tar", "test-0.tar"):
        (tmp_path / name).write_bytes(b"")
    for which in ("train", "validation"):
        config = tiny()
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **{which: str(tmp_path)}))
        with pytest.raises(ValueError, match=f"name one with --data.{which}_split, which may be test, train, all"):
            train(config)
