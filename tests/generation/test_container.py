"""The file's layout: damage at one place costs one image, and nothing in a hostile file is believed."""

import struct
import zlib

import numpy as np
import pytest

from gsqtok.generation import container
from gsqtok.generation.coder import DamagedError
from gsqtok.generation.container import CompressedFile, CompressedFileError, Header

FINGERPRINT = "0123456789abcdef"


def a_header(names=("a.png", "b/ü.png", "c.png")):
    header = Header(FINGERPRINT, "", container.ADAPTIVE, 2, 300, list(names))
    header.sizes = np.array([[10 * i + 9, 8] for i in range(len(names))])
    header.grids = np.array([[i + 1, 1] for i in range(len(names))])
    header.lengths = np.zeros(len(names), np.int64)
    return header


def records(number=3):
    return [container.record(bytes([i]) * (4 * i), b"8 digest") for i in range(number)]


def damage(file, row):
    """What is wrong with an image; None: nothing."""
    try:
        file.read(row)
    except DamagedError as error:
        return str(error)
    return None


@pytest.fixture
def written(tmp_path):
    def write(data):
        path = tmp_path / "file.gsq"
        path.write_bytes(data)
        return path

    return write


def test_what_was_written_is_read(written):
    header = a_header()
    file = CompressedFile(written(container.pack(header, records())))
    assert len(file) == 3
    assert file.damaged_header is None
    assert file.header.names == ["a.png", "b/ü.png", "c.png"]
    assert (file.header.tokenizer, file.header.prior, file.header.coder) == (FINGERPRINT, "", container.ADAPTIVE)
    assert np.array_equal(file.header.sizes, header.sizes)
    assert np.array_equal(file.header.grids, header.grids)
    assert file.read(2) == (b"\2" * 8, b"8 digest")  # at once, without those before it
    assert file.read(0) == (b"", b"8 digest")
    with pytest.raises(ValueError, match=r"no image 'd.png' among 3"):
        file.header.row("d.png")


def test_static_frequencies_are_in_the_header():
    header = a_header()
    header.coder, header.levels = container.STATIC, np.arange(600, dtype=np.uint16).reshape(2, 300).astype(np.uint8)
    assert np.array_equal(Header.from_bytes(header.to_bytes()).levels, header.levels)


def test_every_byte_that_is_altered_is_noticed(written):
    whole = container.pack(a_header(), records())
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 0x10
        file = CompressedFile(written(bytes(altered)))
        damaged = [row for row in range(3) if damage(file, row)]
        assert len(damaged) == (file.damaged_header is None)  # one image, or one copy of the header


def test_wherever_a_file_ends_the_images_before_are_read(written):
    whole = container.pack(a_header(), records())
    front = 12 + struct.unpack("<I", whole[4:8])[0]
    readable = []
    for end in range(front, len(whole)):
        file = CompressedFile(written(whole[:end]))
        assert file.damaged_header
        found = [damage(file, row) for row in range(3)]
        assert set(found) <= {None, "the file ends before it"}
        readable.append(found.count(None))
    assert readable == sorted(readable)
    assert set(readable) == {0, 1, 2, 3}
    for end in range(front):
        with pytest.raises(CompressedFileError, match="is not a file written by gsqtok compress"):
            CompressedFile(written(whole[:end]))


def sealed(own):
    crc, length = struct.pack("<I", zlib.crc32(own)), struct.pack("<I", len(own))
    return container.MAGIC + length + own + crc + own + crc + length + container.MAGIC


def bomb():
    """2 GiB of names in two megabytes."""
    packer = zlib.compressobj(9, wbits=-15)
    names = b"".join(packer.compress(bytes(2**20)) for _ in range(2**9)) + packer.flush()
    return struct.pack("<B8s8sHIIII", 1, b"t" * 8, b"p" * 8, 2, 300, 1, len(names), 0) + names


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: b"", "buffer of"),
        (lambda: b"\7" + a_header().to_bytes()[1:], "newer than this version"),
        (lambda: a_header(("a", "a", "c")).to_bytes(), "2 names for 3 images"),
        (lambda: a_header().to_bytes()[:-3], "cut off"),
        (bomb, "too large"),
        (lambda: changed("groups", 0), "0 groups"),
        (lambda: changed("codebook_size", 2**30), "codewords"),
        (lambda: changed("grids", np.full((3, 2), 2**16)), "positions"),
        (lambda: changed("sizes", np.zeros((3, 2))), "no pixels"),
    ],
)
def test_a_hostile_header_is_refused_in_one_line(make, said, written):
    own = make()
    with pytest.raises(CompressedFileError, match=said) as error:
        CompressedFile(written(sealed(own)))
    assert "\n" not in str(error.value)


def changed(name, value):
    header = a_header()
    setattr(header, name, value)
    return header.to_bytes()


def test_no_file_at_all(tmp_path, written):
    with pytest.raises(FileNotFoundError, match="no such file"):
        CompressedFile(tmp_path / "none.gsq")
    with pytest.raises(CompressedFileError):
        CompressedFile(written(b"GIF89a" + bytes(100)))
