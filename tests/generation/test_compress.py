"""Files of compressed tokens: round trip, checksums, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from gsqtok.generation import arithmetic, probabilities
from gsqtok.generation.coder import DamagedError
from gsqtok.generation.compress import Compressor, decompress, fixed_bits
from gsqtok.generation.container import ADAPTIVE, STATIC, CompressedFile, CompressedFileError
from gsqtok.quantizers import quantizer_options
from gsqtok.tokenizer import ImageTokenizer

pytest.importorskip("constriction")
NAMES, SIZES = ["a.png", "b.png", "c.png"], [(12, 16), (9, 16), (30, 20)]


@pytest.fixture
def grids():
    rng = np.random.default_rng(0)
    return [np.minimum(rng.exponential(9, (-(-h // 4), -(-w // 4), 2)), 63).astype(np.int64) for h, w in SIZES]


@pytest.fixture
def packed(tmp_path, tiny_tokenizer, grids):
    def pack(**options):
        path = tmp_path / "images.gsq"
        path.write_bytes(Compressor(tiny_tokenizer, **options).pack(NAMES, SIZES, grids))
        return path

    return pack


@pytest.mark.parametrize("way", ["static", "adaptive", "prior", None])
def test_round_trip_in_any_order(way, packed, grids, tiny_tokenizer, tiny_prior):
    prior = tiny_prior if way == "prior" else None
    path = packed(prior=prior) if prior else packed(frequencies=way)
    read = list(decompress(path, tiny_tokenizer, prior))
    assert [(name, size) for name, size, _ in read] == list(zip(NAMES, SIZES, strict=True))
    assert all(np.array_equal(tokens, grid) for (*_, tokens), grid in zip(read, grids, strict=True))
    (only,) = decompress(path, tiny_tokenizer, prior, names=["b.png"])
    assert only[0] == "b.png"
    assert np.array_equal(only[2], grids[1])


@pytest.fixture
def nested(tiny_config):
    options = quantizer_options("gsq", groups=2, codebook_size=64, nested="uniform")
    return ImageTokenizer(dataclasses.replace(tiny_config, quantizer=options)).eval()


@pytest.mark.parametrize("way", ["static", "adaptive"])
def test_groups_of_each_position(way, nested, grids, tmp_path):
    for number, grid in enumerate(grids):
        grid[np.random.default_rng(number).random(grid.shape[:2]) < 0.6, 1] = -1
    path = tmp_path / "images.gsq"
    path.write_bytes(Compressor(nested, frequencies=way).pack(NAMES, SIZES, [grid.astype(np.int32) for grid in grids]))
    header = CompressedFile(path).header
    assert header.mapped
    assert header.coder == (STATIC if way == "static" else ADAPTIVE)
    read = list(decompress(path, nested))
    assert all(np.array_equal(tokens, grid) for (*_, tokens), grid in zip(read, grids, strict=True))
    (only,) = decompress(path, nested, names=["c.png"])
    assert np.array_equal(only[2], grids[2])
    assert nested.decode(torch.from_numpy(only[2])[None], size=SIZES[2]).shape == (1, 3, *SIZES[2])
    assert fixed_bits(nested, grids) == 6 * sum((grid >= 0).sum() for grid in grids)
    data = bytearray(path.read_bytes())
    data[int(CompressedFile(path)._starts[1]) + 1] ^= 1
    path.write_bytes(data)
    lost = [name for name, _, tokens in decompress(path, nested) if isinstance(tokens, DamagedError)]
    assert lost == ["b.png"]


def test_a_prior_codes_all_groups(tiny_tokenizer, tiny_prior, grids):
    grids[0][0, 0, 1] = -1
    with pytest.raises(ValueError, match="a prior codes all groups of a position"):
        Compressor(tiny_tokenizer, tiny_prior).pack(NAMES, SIZES, grids)


def test_a_map_for_a_tokenizer_without_nested_groups_is_damage(nested, tiny_tokenizer, grids, tmp_path, monkeypatch):
    grids[0][0, 0, 1] = -1
    path = tmp_path / "images.gsq"
    path.write_bytes(Compressor(nested).pack(NAMES, SIZES, grids))
    monkeypatch.setattr(tiny_tokenizer, "tokens_fingerprint", nested.tokens_fingerprint)
    with pytest.raises(CompressedFileError, match="not nested"):
        next(decompress(path, tiny_tokenizer))


def test_the_smaller_frequencies_are_taken(tiny_tokenizer, grids, tmp_path):
    compressor, path = Compressor(tiny_tokenizer), tmp_path / "file.gsq"
    path.write_bytes(compressor.pack(["a"], SIZES[:1], grids[:1]))
    assert CompressedFile(path).header.coder == ADAPTIVE  # a table would be larger than what it saves
    many = [grids[0]] * 300
    path.write_bytes(compressor.pack([str(i) for i in range(300)], [SIZES[0]] * 300, many))
    assert CompressedFile(path).header.coder == STATIC
    adaptive = Compressor(tiny_tokenizer, frequencies="adaptive")
    assert path.stat().st_size < len(adaptive.pack([str(i) for i in range(300)], [SIZES[0]] * 300, many))


def test_fixed_bits(tiny_tokenizer, grids):
    assert fixed_bits(tiny_tokenizer, grids) == 6 * sum(grid.size for grid in grids)


def test_bits_are_those_of_a_file_for_each_image(tiny_tokenizer, grids):
    compressor = Compressor(tiny_tokenizer, frequencies="adaptive")
    tokens = torch.from_numpy(np.stack([grids[0], grids[0][::-1]]))
    expected = [8 * len(compressor.pack(["0"], [SIZES[0]], [grid])) for grid in tokens.numpy()]
    assert compressor.bits(tokens, SIZES[0]).tolist() == expected


def test_damage_is_named_and_the_others_are_decoded(packed, grids, tiny_tokenizer):
    path = packed(frequencies="adaptive")
    data = bytearray(path.read_bytes())
    file = CompressedFile(path)
    data[int(file._starts[1]) + 2] ^= 1
    path.write_bytes(data)
    first, second, third = decompress(path, tiny_tokenizer)
    assert isinstance(second[2], DamagedError)
    assert np.array_equal(first[2], grids[0])
    assert np.array_equal(third[2], grids[2])


def test_a_size_that_its_tokens_do_not_have_is_damage(tmp_path, tiny_tokenizer, grids):
    path = tmp_path / "file.gsq"
    path.write_bytes(Compressor(tiny_tokenizer).pack(NAMES, [SIZES[0], (400, 400), SIZES[2]], grids))
    first, second, third = decompress(path, tiny_tokenizer)
    assert "400 x 400 pixels are no grid of 3 x 4 tokens" in str(second[2])
    assert np.array_equal(first[2], grids[0])
    assert np.array_equal(third[2], grids[2])


def test_other_probabilities_are_never_silent(packed, tiny_tokenizer, tiny_prior, monkeypatch):
    path = packed(prior=tiny_prior)

    def off_by_one(logits):
        table = arithmetic.frequencies(logits)
        table[..., 0] += 2.0**16
        return table

    monkeypatch.setattr(probabilities, "frequencies", off_by_one)
    for _, _, tokens in decompress(path, tiny_tokenizer, tiny_prior):
        assert isinstance(tokens, DamagedError)


def test_what_does_not_belong_together_is_refused(packed, tiny_tokenizer, tiny_prior, tiny_config, grids):
    path = packed(prior=tiny_prior)
    with pytest.raises(ValueError, match="name it with --prior"):
        decompress(path, tiny_tokenizer)
    other = ImageTokenizer(tiny_config)
    with pytest.raises(ValueError, match="was made by the tokenizer"):
        decompress(path, other, tiny_prior)
    with pytest.raises(ValueError, match="the prior is for tokens of the tokenizer"):
        Compressor(other, tiny_prior)
    with pytest.raises(ValueError, match="name one of them"):
        Compressor(tiny_tokenizer, tiny_prior, "static")
    with torch.no_grad():
        tiny_prior.classes.add_(1)
    with pytest.raises(ValueError, match="was compressed with the prior"):
        decompress(path, tiny_tokenizer, tiny_prior)
    with pytest.raises(ValueError, match=r"no image 'd.png'"):
        decompress(packed(), tiny_tokenizer, names=["d.png"])
    compressor = Compressor(tiny_tokenizer)
    with pytest.raises(ValueError, match="no image to compress"):
        compressor.pack([], [], [])
    with pytest.raises(ValueError, match="names must differ"):
        compressor.pack(["a", "a"], SIZES[:2], grids[:2])
