"""Codecs against Pillow and scikit-image: sizes within the target, the best quality that fits, metrics of the files."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from skimage.metrics import peak_signal_noise_ratio

import gsqtok
from gsqtok.data import open_source, to_tensor
from gsqtok.evaluation import Codec, evaluate_codec

IMAGES = Path(gsqtok.__file__).parent / "demo_images"
CODECS = [
    pytest.param(name, marks=pytest.mark.skipif(not features.check(feature), reason=f"Pillow without {name}"))
    for name, feature in [("jpeg", "jpg"), ("webp", "webp"), ("avif", "avif")]
]


def image(name="coffee", size=96):
    return Image.open(IMAGES / f"{name}.png").convert("RGB").resize((size, size - 8), Image.Resampling.LANCZOS)


def psnr(file, original):
    restored = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    return peak_signal_noise_ratio(np.asarray(original), restored)


@pytest.mark.parametrize("name", CODECS)
def test_the_largest_file_within_the_target(name):
    original = image()
    codec = Codec(name, 1.5)
    limit = 1.5 * 96 * 88 / 8
    best = codec.fit(original)
    assert Image.open(io.BytesIO(best)).format.lower() == name
    assert len(best) <= limit
    quality = max(q for q in range(codec.LOWEST[name], 100) if codec.encode(original, q) == best)
    assert len(codec.encode(original, quality + 1)) > limit


@pytest.mark.parametrize("name", CODECS)
def test_fewer_files_than_by_halving_find_the_best(name, monkeypatch):
    original, tried = image(), []
    sizes = {q: len(Codec(name, 1).encode(original, q)) for q in range(Codec.LOWEST[name], 101)}
    encode = Codec.encode
    monkeypatch.setattr(Codec, "encode", lambda self, image, q: tried.append(q) or encode(self, image, q))
    targets = (0.3, 0.6, 1.0, 1.7, 3.0, 5.0)
    for target in targets:
        limit = target * 96 * 88 / 8
        highest = max((q for q, size in sizes.items() if size <= limit), default=Codec.LOWEST[name])
        assert len(Codec(name, target).fit(original)) == sizes[highest]
    assert len(tried) < 7 * len(targets)  # halving 100 qualities takes seven, and the lowest


@pytest.mark.parametrize("name", CODECS)
def test_more_bits_never_look_worse(name):
    original = image("astronaut", 128)
    files = [Codec(name, bits).fit(original) for bits in (0.75, 1, 2, 4)]
    sizes, quality = [len(file) for file in files], [psnr(file, original) for file in files]
    assert sizes == sorted(set(sizes))
    assert quality == sorted(set(quality))
    assert quality[-1] - quality[0] > 3


@pytest.mark.parametrize("name", CODECS)
def test_a_target_out_of_reach_gives_the_smallest_quality(name):
    codec = Codec(name, 0.001)
    assert codec.fit(image()) == codec.encode(image(), codec.LOWEST[name])
    assert Codec(name, 100).fit(image()) == codec.encode(image(), 100)


def test_jpeg_is_what_pillow_writes():
    file = io.BytesIO()
    image().save(file, "JPEG", quality=37, subsampling=2, optimize=True)
    assert Codec("jpeg", 1).encode(image(), 37) == file.getvalue()


@pytest.mark.parametrize("name", CODECS)
def test_bits_of_a_batch_are_those_of_the_files(name):
    originals = [image("coffee"), image("rocket")]
    codec = Codec(name, 1)
    out = codec(torch.stack([to_tensor(original) for original in originals]))
    files = [codec.fit(original) for original in originals]
    assert out.bits.tolist() == [8 * len(file) for file in files]
    for restored, file in zip(out.images, files, strict=True):
        assert torch.equal(restored, to_tensor(Image.open(io.BytesIO(file))))
    assert out.tokens is None


@pytest.mark.parametrize("name", CODECS)
def test_measured_like_a_tokenizer(name, tmp_path):
    originals = {f"{key}.png": image(key) for key in ("chelsea", "rocket")}
    for key, original in originals.items():
        original.save(tmp_path / key)
    codec = Codec(name, 2)
    result = evaluate_codec(codec, open_source(tmp_path))
    files = [codec.fit(original) for original in originals.values()]
    assert result.per_image["key"] == list(originals)
    truth = [psnr(file, original) for file, original in zip(files, originals.values(), strict=True)]
    np.testing.assert_allclose(result.per_image["psnr"], truth, rtol=1e-6)
    bits = [8 * len(file) / (96 * 88) for file in files]
    np.testing.assert_allclose(result.per_image["bits_per_pixel"], bits)
    assert result["bits_per_pixel"] == pytest.approx(np.mean(bits))
    assert result.model["name"] == name
    assert result.codebook is None


@pytest.mark.parametrize("name", CODECS)
def test_no_metadata_is_paid_for(name):
    with_profile = Image.open(IMAGES / "astronaut.png")
    assert "icc_profile" in with_profile.info
    bare = Image.fromarray(np.asarray(with_profile.convert("RGB")))
    assert Codec(name, 1).encode(with_profile.convert("RGB"), 50) == Codec(name, 1).encode(bare, 50)


def test_names():
    assert Codec.parse("codec:webp@0.5") == Codec("webp", 0.5)
    assert str(Codec("jpeg", 2.0)) == "codec:jpeg@2"
    for wrong in ("codec:webp", "codec:gif@1", "codec:jpeg@much", "codec:jpeg@0", "codec:jpeg@-1", "codec:jpeg@nan"):
        with pytest.raises(ValueError, match=r"codec:webp@0\.5"):
            Codec.parse(wrong)


def test_a_pillow_without_the_codec(monkeypatch):
    monkeypatch.setattr(features, "check", lambda feature: feature != "avif")
    with pytest.raises(ValueError, match="AVIF"):
        Codec("avif", 1)
