import io
import json
import os
import zipfile

import numpy as np
import pytest
import torch

from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig
from gsqtok.tokens import TokenArchive, TokenArchiveWriter
from gsqtok.tokens.archive import META, TokenArchiveError


def grid(seed, high=64, shape=(3, 2, 2)):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def archive(tiny_tokenizer, tmp_path):
    path = tmp_path / "tokens.npz"
    with TokenArchiveWriter(path, tiny_tokenizer) as writer:
        writer.add("b/cat.png", grid(0), (12, 7))
        writer.add("größe 猫.jpg", grid(1, shape=(1, 4, 2)), (1, 16))
        writer.add("no-suffix", grid(2), (9, 8))
    return path


def test_round_trip(archive, tiny_tokenizer):
    read = TokenArchive(archive)
    assert len(read) == 3
    assert read.codebook_size == 64
    assert read.fingerprint == tiny_tokenizer.tokens_fingerprint()
    rows = list(read)
    assert [(name, size) for name, _, size in rows] == [
        ("b/cat.png", (12, 7)),
        ("größe 猫.jpg", (1, 16)),
        ("no-suffix", (9, 8)),
    ]
    for (_, tokens, _), expected in zip(rows, [grid(0), grid(1, shape=(1, 4, 2)), grid(2)], strict=True):
        assert tokens.dtype == torch.int64
        assert torch.equal(tokens, expected)
    read.require(tiny_tokenizer)


def test_numpy_alone_reads_it(archive):
    with np.load(archive) as arrays:
        assert set(arrays) == {"b/cat.png", "größe 猫.jpg", "no-suffix", META}
        assert np.array_equal(arrays["b/cat.png"], grid(0).numpy())
        assert json.loads(str(arrays[META]))["sizes"]["no-suffix"] == [9, 8]


@pytest.mark.parametrize(
    ("size", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "uint32")]
)
def test_the_smallest_type_that_holds_every_index(tmp_path, size, dtype):
    config = TokenizerConfig(
        latent_dim=1,
        channels=32,
        multipliers=(1,),
        encoder_blocks=0,
        decoder_blocks=0,
        encoder_middle_blocks=0,
        decoder_middle_blocks=0,
        quantizer={"name": "gsq", "codebook_size": size},
    )
    tokens = torch.tensor([[[0], [size - 1]]])
    with TokenArchiveWriter(tmp_path / "t.npz", ImageTokenizer(config)) as writer:
        writer.add("a", tokens, (1, 2))
    assert np.load(tmp_path / "t.npz")["a"].dtype == dtype
    ((_, read, _),) = TokenArchive(tmp_path / "t.npz")
    assert torch.equal(read, tokens)


def test_an_error_inside_leaves_no_file(tiny_tokenizer, tmp_path):
    writer = TokenArchiveWriter(tmp_path / "t.npz", tiny_tokenizer)
    with pytest.raises(ValueError, match="two images"), writer:  # noqa: PT012
        for _ in range(2):
            writer.add("a", grid(0), (12, 8))
    assert os.listdir(tmp_path) == []


def test_an_error_inside_leaves_the_old_file(archive, tiny_tokenizer):
    before = archive.read_bytes()
    with pytest.raises(KeyboardInterrupt), TokenArchiveWriter(archive, tiny_tokenizer) as writer:  # noqa: PT012
        writer.add("a", grid(0), (12, 8))
        raise KeyboardInterrupt
    assert archive.read_bytes() == before
    assert os.listdir(archive.parent) == [archive.name]


@pytest.mark.parametrize("name", ["a", META])
def test_a_name_twice(tiny_tokenizer, tmp_path, name):
    with TokenArchiveWriter(tmp_path / "t.npz", tiny_tokenizer) as writer:
        writer.add("a", grid(0), (12, 8))
        with pytest.raises(ValueError, match=f"two images are called '{name}'"):
            writer.add(name, grid(1), (12, 8))


def test_a_name_that_ends_in_npy(tiny_tokenizer, tmp_path):
    """numpy takes that suffix off the entries of a file, so "a" and "a.npy" are near each other."""
    with TokenArchiveWriter(tmp_path / "t.npz", tiny_tokenizer) as writer:
        writer.add("a", grid(0), (12, 8))
        writer.add("a.npy", grid(1), (12, 8))
    rows = {name: tokens for name, tokens, _ in TokenArchive(tmp_path / "t.npz")}
    assert torch.equal(rows["a"], grid(0))
    assert torch.equal(rows["a.npy"], grid(1))


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TokenArchive(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("kept", [0, 1, 40, 0.5, 0.99])
def test_truncated(archive, kept):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(TokenArchiveError, match=r"tokens\.npz is not an archive written by gsqtok encode"):
        TokenArchive(archive)


def _npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\x1a\n" + bytes(100), b"hello, world", _npy(np.zeros(3)), _npy(np.array(3)), _npy(np.array([{}]))],
    ids=["png", "text", "array", "number", "pickle"],
)
def test_foreign_files(tmp_path, content):
    path = tmp_path / "tokens.npz"
    path.write_bytes(content)
    with pytest.raises(TokenArchiveError, match="not an archive"):
        TokenArchive(path)


@pytest.mark.parametrize(
    "meta",
    [None, np.zeros(3), np.array("{"), np.array("[]"), np.array("{}"), np.array('{"sizes": {"a": [1]}}')],
    ids=["none", "numbers", "no-json", "list", "empty", "size"],
)
def test_npz_files_of_others(tmp_path, meta):
    path = tmp_path / "tokens.npz"
    np.savez(path, a=np.zeros((1, 1, 1), np.uint8), **({} if meta is None else {META: meta}))
    with pytest.raises(TokenArchiveError, match="not an archive"):
        TokenArchive(path)


def _with(path, name, content):
    """The same archive with another content for one entry."""
    with zipfile.ZipFile(path) as old:
        entries = {entry: old.read(entry) for entry in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for entry, data in (entries | {name: content}).items():
            new.writestr(entry, data)


class Evil:
    ran = False

    def __reduce__(self):
        return setattr, (Evil, "ran", True)


def test_pickles_are_refused_and_not_run(archive):
    _with(archive, "no-suffix.npy", _npy(np.array([Evil()]), allow_pickle=True))
    with pytest.raises(TokenArchiveError, match="'no-suffix' cannot be read"):
        list(TokenArchive(archive))
    _with(archive, f"{META}.npy", _npy(np.array([Evil()]), allow_pickle=True))
    with pytest.raises(TokenArchiveError, match="not an archive"):
        TokenArchive(archive)
    assert not Evil.ran


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 2)), np.zeros((2, 2, 2), np.int64)])
def test_entries_that_are_no_grids(archive, array):
    _with(archive, "no-suffix.npy", _npy(array))
    with pytest.raises(TokenArchiveError, match=r"'no-suffix' is .* not a grid"):
        list(TokenArchive(archive))


def test_a_header_that_promises_more_than_there_is_takes_no_memory(archive):
    text = b"{'descr': '<u8', 'fortran_order': False, 'shape': (99999999, 99999999, 9), }".ljust(117) + b"\n"
    _with(archive, "no-suffix.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64))
    with pytest.raises(TokenArchiveError, match=r"'no-suffix' cannot be read .*which it does not hold"):
        list(TokenArchive(archive))
    _with(archive, "no-suffix.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<u8', 'fo")
    with pytest.raises(TokenArchiveError, match="'no-suffix' cannot be read"):
        list(TokenArchive(archive))


@pytest.mark.parametrize(
    "change", [{"format": 99}, {"codebook_size": 0}, {"codebook_size": 1e400}, {"sizes": {"a": [0, 4]}}]
)
def test_what_it_says_of_itself_is_checked(archive, change):
    with np.load(archive) as arrays:
        meta = json.loads(str(arrays[META]))
    _with(archive, f"{META}.npy", _npy(np.array(json.dumps(meta | change))))
    with pytest.raises(TokenArchiveError, match="not an archive"):
        TokenArchive(archive)


def test_tokens_beyond_the_codebook_are_refused(archive):
    _with(archive, "no-suffix.npy", _npy(np.full((2, 2, 2), 255, np.uint8)))
    with pytest.raises(TokenArchiveError, match="a token of 'no-suffix' is not below"):
        list(TokenArchive(archive))


def test_a_missing_entry(archive):
    with zipfile.ZipFile(archive) as old:
        entries = {entry: old.read(entry) for entry in old.namelist() if entry != "no-suffix.npy"}
    with zipfile.ZipFile(archive, "w") as new:
        for entry, data in entries.items():
            new.writestr(entry, data)
    with pytest.raises(TokenArchiveError, match="'no-suffix' cannot be read"):
        list(TokenArchive(archive))


def test_flipped_bytes_are_noticed(archive):
    """Each byte of the first image's compressed data in turn."""
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as file:
        first, second = file.infolist()[:2]
    start = first.header_offset + 30 + len(first.filename) + 20  # local header, name, zip64 sizes
    for i in range(start, second.header_offset, 7):
        archive.write_bytes(content[:i] + bytes([content[i] ^ 0x5A]) + content[i + 1 :])
        with pytest.raises(TokenArchiveError):
            list(TokenArchive(archive))


def test_another_tokenizer_is_refused(archive, tiny_tokenizer):
    with torch.no_grad():
        tiny_tokenizer.quantizer.codebook.neg_()
    with pytest.raises(TokenArchiveError, match="name the same model that encoded it"):
        TokenArchive(archive).require(tiny_tokenizer)
