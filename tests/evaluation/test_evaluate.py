"""The figures of a set of pictures against those of each picture by itself, in one process and in two."""

import numpy as np
import pytest
import torch
from PIL import Image

from gsqtok.data import ImageTransform, open_source, to_tensor
from gsqtok.evaluation import CodebookUsage, ReconstructionMetrics, evaluate
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    config = {"channels": 32, "multipliers": (1, 1), "encoder_blocks": 1, "decoder_blocks": 1, "latent_dim": 8}
    quantizer = {"name": "gsq", "groups": 2, "codebook_size": 64}
    return ImageTokenizer(TokenizerConfig(**config, quantizer=quantizer)).eval()


@pytest.fixture
def pictures(tmp_path):
    """Five pictures of three sizes, neighbours of the same size among them, odd sides too."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate([(24, 16), (24, 16), (17, 31), (24, 16), (12, 12)]):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def by_hand(tokenizer, images):
    metrics, usage = ReconstructionMetrics(), CodebookUsage(64, 2)
    for image in images:
        tokens = tokenizer.encode(image[None])
        metrics.update(tokenizer.decode(tokens, tuple(image.shape[1:])), image[None])
        usage.update(tokens)
    return metrics.compute() | usage.compute()


def check(result, expected):
    """``expected`` is what `by_hand` gives; convolutions of another batch size round elsewhere."""
    of_codebook = ("dead_codes", "positions", "usage_per_group", "perplexity_per_group")
    for name, value in expected.items():
        where = result.codebook if name in of_codebook else result.data if name == "images" else result
        assert where[name] == pytest.approx(value, rel=1e-3), name


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_mixed_sizes(tokenizer, pictures, batch_size):
    done = []
    result = evaluate(tokenizer, open_source(str(pictures)), batch_size=batch_size, on_progress=done.append)
    images = [to_tensor(Image.open(file)) for file in sorted(pictures.iterdir())]
    check(result, by_hand(tokenizer, images))
    assert result.data["images"] == sum(done) == 5
    assert result.data["rejected"] == 0
    assert result.codebook["positions"] == 3 * 12 * 8 + 9 * 16 + 6 * 6
    assert result.model["bits_per_position"] == 12
    assert result.model["bits_per_pixel"] == 3
    pixels = 3 * 24 * 16 + 17 * 31 + 12 * 12
    assert result["bits_per_pixel"] == pytest.approx(12 * result.codebook["positions"] / pixels, rel=1e-12)
    spent = result["entropy_bits"] * 2 * result.codebook["positions"]
    assert result["bits_per_pixel_entropy"] == pytest.approx(spent / pixels, rel=1e-12)
    assert result["images_per_second"] > 0


def test_transform(tokenizer, pictures):
    transform = ImageTransform(14)
    result = evaluate(tokenizer, open_source(str(pictures)), transform=transform)
    check(result, by_hand(tokenizer, [transform(Image.open(file)) for file in sorted(pictures.iterdir())]))
    assert result.protocol["name"] == "custom"
    assert result.protocol["size"] == 14


def comparable(result):
    """All that should not depend on when and with how many processes one measures."""
    parts = result.to_dict()
    parts["figures"].pop("images_per_second")
    return {name: parts[name] for name in ("model", "data", "protocol", "figures", "per_image", "codebook")}


def test_streaming_gives_the_same(tokenizer, pictures):
    result = evaluate(tokenizer, open_source(str(pictures)), batch_size=1)
    streamed = evaluate(tokenizer, open_source(str(pictures), streaming=True), batch_size=1)
    assert comparable(streamed) == comparable(result)


def test_broken_pictures_are_left_out(tokenizer, pictures):
    before = evaluate(tokenizer, open_source(str(pictures)))
    (pictures / "2a.png").write_bytes((pictures / "2.png").read_bytes()[:60])
    (pictures / "9.png").write_bytes(b"no picture")
    after = evaluate(tokenizer, open_source(str(pictures)))
    assert after.data.pop("rejected") == 2
    assert before.data.pop("rejected") == 0
    assert after.data == before.data
    assert after.codebook["positions"] == before.codebook["positions"]
    assert after.per_image["key"] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    for name in ("psnr", "ssim", "usage"):
        assert after[name] == pytest.approx(before[name], rel=1e-3)


@pytest.mark.parametrize("streaming", [False, True])
def test_only_broken_pictures(tokenizer, tmp_path, streaming):
    folder = tmp_path / "broken"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"no picture could be read.*3") as error:
        evaluate(tokenizer, open_source(str(folder), streaming=streaming))
    assert "\n" not in str(error.value)


def test_small_pictures_have_no_ssim(tokenizer, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    figures = evaluate(tokenizer, open_source(str(tmp_path)))
    assert np.isnan(figures["ssim"])
    assert np.isfinite(figures["psnr"])


def test_a_codebook_too_large_to_count(pictures):
    config = TokenizerConfig(channels=32, multipliers=(1, 1), latent_dim=8, quantizer={"name": "identity"})
    result = evaluate(ImageTokenizer(config).eval(), open_source(str(pictures)))
    assert result.model["bits_per_position"] == 8 * 32
    assert "psnr" in result
    assert "usage" not in result
    assert result.codebook is None
