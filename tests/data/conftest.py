import io
import tarfile

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Arrow files go to a folder of the test, not to the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("arrow-cache")))


@pytest.fixture
def noise():
    """An image of its own for every number."""

    def make(number, size=(8, 8)):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture
def encoded(noise):
    def make(number, size=(8, 8), image_format="PNG", **options):
        buffer = io.BytesIO()
        noise(number, size).save(buffer, image_format, **options)
        return buffer.getvalue()

    return make


@pytest.fixture
def folder(tmp_path, encoded):
    """Ten numbered images, 00.png to 09.png."""
    root = tmp_path / "images"
    root.mkdir()
    for i in range(10):
        (root / f"{i:02d}.png").write_bytes(encoded(i))
    return root


@pytest.fixture
def write_parquet():
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(path, images, column="image", plain=False, **columns):
        path.parent.mkdir(parents=True, exist_ok=True)
        values = images if plain else [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
        kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(pa.table({column: pa.array(values, kind), **columns}), path, row_group_size=3)
        return path

    return write


@pytest.fixture
def write_tar():
    def write(path, members):
        with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return write
