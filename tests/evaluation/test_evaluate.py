"""The figures of a set of pictures against those of each picture by itself."""

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


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_mixed_sizes(tokenizer, pictures, batch_size):
    done = []
    figures = evaluate(tokenizer, open_source(str(pictures)), batch_size=batch_size, on_progress=done.append)
    images = [to_tensor(Image.open(file)) for file in sorted(pictures.iterdir())]
    for name, value in by_hand(tokenizer, images).items():
        assert figures[name] == pytest.approx(value, rel=1e-3), name
    assert figures["images"] == sum(done) == 5
    assert figures["positions"] == 3 * 12 * 8 + 9 * 16 + 6 * 6
    assert figures["rejected"] == 0
    assert figures["bits_per_position"] == 12
    assert figures["bits_per_pixel"] == 3
    assert figures["images_per_second"] > 0


def test_transform(tokenizer, pictures):
    transform = ImageTransform(14)
    figures = evaluate(tokenizer, open_source(str(pictures)), transform=transform)
    images = [transform(Image.open(file)) for file in sorted(pictures.iterdir())]
    for name, value in by_hand(tokenizer, images).items():
        assert figures[name] == pytest.approx(value, rel=1e-3), name


def test_streaming_gives_the_same(tokenizer, pictures):
    figures = evaluate(tokenizer, open_source(str(pictures)), batch_size=1)
    streamed = evaluate(tokenizer, open_source(str(pictures), streaming=True), batch_size=1)
    assert {**streamed, "images_per_second": 0} == {**figures, "images_per_second": 0}


def test_broken_pictures_are_left_out(tokenizer, pictures):
    before = evaluate(tokenizer, open_source(str(pictures)))
    (pictures / "2a.png").write_bytes((pictures / "2.png").read_bytes()[:60])
    (pictures / "9.png").write_bytes(b"no picture")
    after = evaluate(tokenizer, open_source(str(pictures)))
    assert after["rejected"] == 2
    for name in ("images", "positions", "psnr", "ssim", "usage"):
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
    figures = evaluate(ImageTokenizer(config).eval(), open_source(str(pictures)))
    assert figures["bits_per_position"] == 8 * 32
    assert "psnr" in figures
    assert "usage" not in figures
