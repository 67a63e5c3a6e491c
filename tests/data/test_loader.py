import logging
from itertools import islice

import numpy as np
import pytest
import torch

from gsqtok.data import CropMix, ImageDataset, ImageTransform, eval_loader, open_source, to_tensor, train_loader

RANDOM = ImageTransform(6, "random", flip=True)
WHOLE = ImageTransform(None, "none")


def take(count, source, transform=RANDOM, **options):
    return list(islice(train_loader(source, transform, **options), count))


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a["keys"] == b["keys"]
        assert a["skipped"] == b["skipped"]
        torch.testing.assert_close(a["image"], b["image"], rtol=0, atol=0)


def joined(batches):
    """The batches of several ranks put together."""
    return {
        "image": torch.cat([batch["image"] for batch in batches]),
        "keys": [item for batch in batches for item in batch["keys"]],
        "skipped": [item for batch in batches for item in batch["skipped"]],
    }


@pytest.fixture
def broken_folder(folder):
    """02.png, 03.png and the last image, 09.png, cannot be read."""
    (folder / "02.png").write_bytes(b"")
    (folder / "03.png").write_text("no image")
    data = (folder / "09.png").read_bytes()
    (folder / "09.png").write_bytes(data[: len(data) // 2])
    return folder


@pytest.fixture
def shards(tmp_path, write_tar, encoded):
    """Four shards of five images each."""
    root = tmp_path / "shards"
    root.mkdir()
    for shard in range(4):
        write_tar(root / f"{shard}.tar", {f"{i}.png": encoded(10 * shard + i) for i in range(5)})
    return root


def keys_of(shards):
    return [f"{shard}.tar/{i}.png" for shard in range(4) for i in range(5)]


# Training, by number


def test_batch_of_training(folder, noise):
    (batch,) = take(1, open_source(folder), ImageTransform(8), batch_size=10, seed=3)
    assert batch["image"].shape == (10, 8, 8, 3)
    assert batch["image"].dtype == torch.uint8
    assert sorted(batch["keys"]) == [f"{i:02d}.png" for i in range(10)]
    assert batch["keys"] != sorted(batch["keys"])
    assert batch["skipped"] == []
    for key, image in zip(batch["keys"], batch["image"], strict=True):
        assert np.array_equal(image, np.asarray(noise(int(key[:2]))))


def test_workers_make_no_difference(broken_folder):
    source = open_source(broken_folder)
    same(take(7, source, batch_size=4, seed=1), take(7, source, batch_size=4, seed=1, workers=2))


def test_ranks_make_no_difference(broken_folder):
    source = open_source(broken_folder)
    whole = take(6, source, batch_size=6, seed=1)
    ranks = [take(6, source, batch_size=6, seed=1, rank=rank, world_size=3) for rank in range(3)]
    same([joined(parts) for parts in zip(*ranks, strict=True)], whole)


def test_resuming(broken_folder):
    source = open_source(broken_folder)
    same(take(4, source, batch_size=4, seed=1, start_step=5), take(9, source, batch_size=4, seed=1)[5:])


MIX = CropMix((ImageTransform(4, "random", scales=(1, 2)), ImageTransform(8, "random", flip=True)), (0.5, 0.5), 8)


def test_batches_of_several_sizes(broken_folder):
    source = open_source(broken_folder)
    whole = take(8, source, MIX, batch_size=2, seed=1)
    assert {batch["image"].shape[1] for batch in whole} == {4, 8}
    assert {batch["image"].numel() for batch in whole} == {2 * 8 * 8 * 3}
    same(take(8, source, MIX, batch_size=2, seed=1, workers=2), whole)
    same(take(3, source, MIX, batch_size=2, seed=1, start_step=5), whole[5:])
    ranks = [take(8, source, MIX, batch_size=2, seed=1, rank=rank, world_size=2) for rank in range(2)]
    same([joined(parts) for parts in zip(*ranks, strict=True)], whole)


def test_streaming_has_crops_of_one_size(folder):
    with pytest.raises(ValueError, match="streaming reads encoded images in their files' order"):
        take(1, open_source(folder), MIX, batch_size=2, streaming=True)


def test_batch_larger_than_the_data_set(folder):
    (batch,) = take(1, open_source(folder), batch_size=25)
    assert sorted(batch["keys"][:20]) == sorted(2 * [f"{i:02d}.png" for i in range(10)])


def test_augmentation_changes_with_epoch_and_seed(folder, encoded):
    (folder / "04.png").write_bytes(encoded(4, (8, 12)))
    source = open_source(folder)
    first, second, again = (ImageDataset(source, RANDOM, seed) for seed in (0, 1, 0))
    images = {first[epoch, 4].pixels.tobytes() for epoch in range(30)}
    assert 4 < len(images) <= 8  # 6 x 9 after resizing: 4 offsets, mirrored or not
    assert any((first[e, 4].pixels != second[e, 4].pixels).any() for e in range(5))
    assert all((first[e, 4].pixels == again[e, 4].pixels).all() for e in range(5))


def test_broken_images_are_replaced_by_the_next(broken_folder):
    dataset = ImageDataset(open_source(broken_folder), ImageTransform(8))
    expected = {1: "01.png", 2: "04.png", 3: "04.png", 4: "04.png", 9: "00.png"}
    assert {i: dataset[0, i].key for i in expected} == expected
    assert [key for key, _ in dataset[0, 2].skipped] == ["02.png", "03.png"]
    assert dataset[0, 2].skipped[0] == ("02.png", "zero bytes")
    assert [key for key, _ in dataset[7, 9].skipped] == ["09.png"]
    (batch,) = take(1, open_source(broken_folder), batch_size=10)
    assert {key for key, _ in batch["skipped"]} == {"02.png", "03.png", "09.png"}
    assert len(batch["keys"]) == 10


@pytest.mark.parametrize("streaming", [False, True])
def test_no_image_can_be_read(folder, streaming):
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of \d+ images can be read; the first: .*png \(zero bytes\)"):
        take(1, open_source(folder), batch_size=2)


@pytest.mark.parametrize("streaming", [False, True])
def test_images_of_different_sizes_cannot_be_batched(folder, encoded, streaming):
    (folder / "big.png").write_bytes(encoded(1, (9, 7)))
    with pytest.raises(ValueError, match="differ in size"):
        take(1, open_source(folder), WHOLE, batch_size=11, streaming=streaming)


def test_source_without_images(tmp_path, write_tar):
    source = open_source(write_tar(tmp_path / "s.tar", {"a.txt": b"x"}))
    with pytest.raises(ValueError, match="the source holds no image"):
        take(1, source, batch_size=2)
    with pytest.raises(ValueError, match="no image for reader 0 of 1"):
        take(1, source, batch_size=2, streaming=True)
    with pytest.raises(ValueError, match="the source holds no image"):
        list(eval_loader(source, WHOLE, batch_size=2))


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_arguments(folder, streaming):
    source = open_source(folder)
    for options in ({"batch_size": 3, "world_size": 2}, {"batch_size": 2, "rank": 1}, {"batch_size": 2, "seed": -1}):
        with pytest.raises(ValueError):
            train_loader(source, RANDOM, streaming=streaming, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_left_alone(folder, workers):
    state = torch.get_rng_state()
    take(2, open_source(folder), batch_size=4, workers=workers)
    list(eval_loader(open_source(folder), WHOLE, batch_size=4, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)


# Training, streaming


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_streaming_resumes(shards, workers):
    (shards / "2.tar").write_bytes((shards / "2.tar").read_bytes()[:3000])  # some rows are broken
    source = open_source(shards)
    options = {"batch_size": 3, "seed": 5, "workers": workers, "shuffle_buffer": 4, "streaming": True}
    whole = take(12, source, **options)
    assert any(batch["skipped"] for batch in whole)
    for start in (1, 2, 3, 8):
        same(take(3, source, start_step=start, **options), whole[start : start + 3])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2), (1, 3), (3, 1), (3, 2)])
def test_streaming_readers_share_out_every_epoch(shards, world_size, workers):
    """Shards where they divide evenly, else rows: the first epoch of all readers together has each image once."""
    readers = world_size * max(1, workers)
    source, options = open_source(shards), {"streaming": True, "shuffle_buffer": 3, "workers": workers}
    seen = []
    for rank in range(world_size):
        loader = train_loader(source, RANDOM, batch_size=world_size, rank=rank, world_size=world_size, **options)
        keys = [batch["keys"][0] for batch in islice(loader, 20)]
        for worker in range(max(1, workers)):
            own = keys[worker :: max(1, workers)]
            number = rank * max(1, workers) + worker
            epoch_length = 20 // readers if 4 % readers == 0 else len(range(number, 20, readers))
            seen += own[:epoch_length]
    assert sorted(seen) == keys_of(shards)
    assert seen != keys_of(shards)


def test_streaming_shuffles_every_epoch_anew(shards):
    source = open_source(shards)
    epochs = [batch["keys"] for batch in take(3, source, batch_size=20, seed=1, streaming=True)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(sorted(epoch) == keys_of(shards) for epoch in epochs)
    assert epochs != [batch["keys"] for batch in take(3, source, batch_size=20, seed=2, streaming=True)]


def test_streaming_images_are_the_same_as_by_number(shards):
    (streamed,) = take(1, open_source(shards), ImageTransform(8), batch_size=20, streaming=True)
    (numbered,) = take(1, open_source(shards), ImageTransform(8), batch_size=20)
    for batch in (streamed, numbered):
        order = np.argsort(batch["keys"])
        batch["image"], batch["keys"] = batch["image"][order], sorted(batch["keys"])
    same([streamed], [numbered])


def test_streaming_replaces_broken_images_by_the_next(broken_folder):
    source = open_source(broken_folder)
    (batch,) = take(1, source, batch_size=10, shuffle_buffer=1, streaming=True)
    assert {key for key, _ in batch["skipped"]} == {"02.png", "03.png", "09.png"}
    assert len(batch["keys"]) == 10
    assert set(batch["keys"]) == {f"{i:02d}.png" for i in (0, 1, 4, 5, 6, 7, 8)}


def test_more_readers_than_images(tmp_path, write_tar, encoded):
    write_tar(tmp_path / "s.tar", {"0.png": encoded(0)})
    source = open_source(tmp_path)
    assert take(2, source, batch_size=2, streaming=True)[1]["keys"] == 2 * ["s.tar/0.png"]
    with pytest.raises(ValueError, match="no image for reader 1 of 2"):
        take(1, source, batch_size=2, rank=1, world_size=2, streaming=True)


# Evaluation


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_image_once_in_order(broken_folder, noise, caplog, workers, batch_size):
    loader = eval_loader(open_source(broken_folder), WHOLE, batch_size=batch_size, workers=workers)
    with caplog.at_level(logging.WARNING, "gsqtok.data"):
        batches = list(loader)
    readable = [0, 1, 4, 5, 6, 7, 8]
    assert [item for batch in batches for item in batch["keys"]] == [f"{i:02d}.png" for i in readable]
    torch.testing.assert_close(
        torch.cat([batch["image"] for batch in batches]), torch.stack([to_tensor(noise(i)) for i in readable])
    )
    assert all(1 <= len(batch["keys"]) == len(batch["image"]) <= batch_size for batch in batches)
    assert list(loader.skipped.reasons) == ["02.png", "03.png", "09.png"]
    assert caplog.text.count("skipped image") == 3
    reported = [key for batch in batches for key, _ in batch["skipped"]]
    assert reported == list(loader.skipped.reasons)[: len(reported)]  # 09.png may follow the last batch
    assert len(reported) >= 2
    assert len(list(loader)) == len(batches)  # a second pass


def test_native_sizes(tmp_path, encoded):
    sizes = [(8, 8), (8, 8), (8, 6), (8, 8), (5, 7), (5, 7), (5, 7), (5, 7)]
    for i, size in enumerate(sizes):
        (tmp_path / f"{i}.png").write_bytes(encoded(i, size))
    batches = list(eval_loader(open_source(tmp_path), WHOLE, batch_size=4))
    assert [tuple(batch["image"].shape) for batch in batches] == [
        (2, 3, 8, 8),
        (1, 3, 6, 8),
        (1, 3, 8, 8),
        (4, 3, 7, 5),
    ]


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_out_the_images(shards, world_size):
    source = open_source(shards)
    ranks = [
        [
            key
            for batch in eval_loader(source, WHOLE, batch_size=4, rank=rank, world_size=world_size)
            for key in batch["keys"]
        ]
        for rank in range(world_size)
    ]
    keys = keys_of(shards)
    assert sorted([key for rank in ranks for key in rank]) == keys
    assert all(rank == sorted(rank) for rank in ranks)
    assert [key for rank in ranks for key in rank] == keys
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def test_extra_columns(tmp_path, write_parquet, encoded):
    images = [encoded(i, (8, 8 + i % 2)) for i in range(4)]
    images[2] = b""
    path = write_parquet(tmp_path / "a.parquet", images, label=[5, 6, 7, 8])
    loader = eval_loader(open_source(path, columns=["label"]), WHOLE, batch_size=4)
    assert [batch["label"] for batch in loader] == [[5], [6, 8]]


@pytest.mark.parametrize("world_size", [1, 3])
def test_chosen_images(shards, write_parquet, tmp_path, encoded, world_size):
    source = open_source([shards, write_parquet(tmp_path / "a.parquet", [encoded(i) for i in range(30, 37)])])
    chosen = {"shards/1.tar/4.png", "shards/3.tar/0.png", "a-000005"}
    found = []
    for rank in range(world_size):
        loader = eval_loader(source, WHOLE, batch_size=2, rank=rank, world_size=world_size, keys=chosen)
        found += [key for batch in loader for key in batch["keys"]]
    assert found == sorted(chosen, key=source.all_keys().index)


def test_evaluation_refuses_randomness_and_bad_ranks(folder):
    source = open_source(folder)
    with pytest.raises(ValueError, match="random"):
        eval_loader(source, RANDOM, batch_size=2)
    with pytest.raises(ValueError, match="rank"):
        eval_loader(source, WHOLE, batch_size=2, rank=2, world_size=2)
    with pytest.raises(ValueError, match="batch_size"):
        eval_loader(source, WHOLE, batch_size=0)
