"""The images beside a result: the right ones, each once, as files that can be read."""

import numpy as np
import pytest
import torch
from comparison import write_result
from PIL import Image

from gsqtok.data import ImageTransform, open_source
from gsqtok.evaluation import evaluate
from gsqtok.evaluation.examples import choose, save_examples
from gsqtok.evaluation.result import Result
from gsqtok.evaluation.run import reconstructor


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (3, 3), (5, 3), (9, 9), (12, 12), (100, 12)])
def test_choice(count, expected):
    psnr = np.random.default_rng(0).permutation(count).astype(float).tolist()
    keys = [f"{value:03.0f}" for value in psnr]
    chosen = choose(keys, psnr)
    assert len(chosen) == expected
    by_rank = {rank: [k for k, r in chosen.items() if r == rank] for rank in ("best", "median", "worst")}
    each = min(4, max(1, count // 3))
    ordered = sorted(keys, reverse=True)
    assert by_rank["best"] == ordered[:each]
    if count > 1:
        assert by_rank["worst"] == ordered[::-1][:each]
    if count > 2:
        assert by_rank["median"] == ordered[(count - each) // 2 :][:each]


def test_equal_metrics_choose_nobody_twice():
    chosen = choose([str(i) for i in range(20)], [30.0] * 20)
    assert list(chosen.values()) == ["best"] * 4 + ["median"] * 4 + ["worst"] * 4


@pytest.mark.parametrize("streaming", [False, True])
def test_files(tiny_tokenizer, tmp_path, streaming):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 60 * i + 2, (16, 20, 3), dtype=np.uint8)).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    source = open_source(str(tmp_path / "in"), streaming=streaming)
    result = evaluate(tiny_tokenizer, source)
    transform = ImageTransform(None, crop="none")
    save_examples(reconstructor(tiny_tokenizer), source, transform, result, tmp_path / "out" / "r.json")
    assert [image["rank"] for image in result.images] == ["best", "median", "worst"]
    psnr = dict(zip(result.per_image["key"], result.per_image["psnr"], strict=True))
    assert [psnr[image["key"]] for image in result.images] == sorted(psnr.values(), reverse=True)[::2]
    for image in result.images:
        original = Image.open(tmp_path / "in" / image["key"])
        assert image["original"].startswith("r.images/")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / image["original"])), np.asarray(original))
        with np.load(tmp_path / "out" / image["tokens"]) as archive:
            tokens = torch.from_numpy(archive["tokens"])
        assert tokens.shape == (4, 5, 2)
        stored = np.asarray(Image.open(tmp_path / "out" / image["reconstruction"])).astype(float)
        decoded = (tiny_tokenizer.decode(tokens[None])[0].permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(stored - decoded).max() <= 0.51


def test_the_images_of_another_result(tiny_tokenizer, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("b", "c"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / "in" / f"{name}.png")
    shown = [("a.png", "best"), ("b.png", "best"), ("c.png", "worst")]
    other = Result.load(write_result(tmp_path, "ours", 1, [1, 2, 3], images=shown))
    source = open_source(str(tmp_path / "in"))
    result = evaluate(tiny_tokenizer, source)
    arguments = (reconstructor(tiny_tokenizer), source, ImageTransform(None, crop="none"), result, tmp_path / "r.json")
    save_examples(*arguments, like=other)
    assert [(image["key"], image["rank"]) for image in result.images] == [("b.png", "best"), ("c.png", "worst")]
    assert {image["ranked_by"] for image in result.images} == {"ours"}
    assert len(list((tmp_path / "r.images").iterdir())) == 6
    other.images = other.images[:1]
    with pytest.raises(ValueError, match="none of the 1 images"):
        save_examples(*arguments, like=other)
