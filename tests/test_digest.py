import hashlib

from gsqtok.io import sha256_of


def test_equals_the_digest_of_the_whole(tmp_path):
    for data in (b"", b"gsqtok", bytes(range(256)) * 9000):  # the last takes several blocks
        (tmp_path / "file").write_bytes(data)
        assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()
