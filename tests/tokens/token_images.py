"""Images, sources and what came of them, for the tests of token data sets."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gsqtok.tokens.manifest import read_manifest


def png(number, size=(8, 8), image_format="PNG"):
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


GOOD = {f"{i:02d}.png": png(i, (6 + i % 5, 9)) for i in range(9)}
# name: bytes, reason
BAD = {
    "broken.png": (png(50, (40, 40))[:900], "truncated"),
    "broken.jpg": (png(51, (64, 64), "JPEG")[:1500], "truncated"),
    "text.jpg": (b"this is no image", "not an image"),
    "empty.png": (b"", "zero bytes"),
    "huge.png": (png(52, (90, 90)), "more than the limit"),
}
ODD = {
    "a/same.png": png(60),
    "b/same.png": png(61),
    "a/same.jpg": png(62, image_format="JPEG"),
    "größe 猫 [x].png": png(63),
    "tiny.png": png(64, (1, 1)),
    "strip.png": png(65, (70, 2)),
}
MAX_PIXELS = 5000


def write_tar(path, members):
    """Members as (name, bytes), of which names may repeat."""
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path, images, **columns):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [None if data is None else {"bytes": data, "path": None} for data in images]
    pq.write_table(pa.table({"image": pa.array(values, kind), **columns}), path, row_group_size=3)
    return path


def rows_of(folder):
    """Every row of a data set: {(key, crop): (tokens, grid, size)}; fails if one is there twice."""
    rows = {}
    for part in read_manifest(folder)["units"]:
        for row in pq.read_table(folder / part["file"]).to_pylist() if "file" in part else []:
            assert (row["key"], row["crop"]) not in rows
            rows[row["key"], row["crop"]] = (row["tokens"], row["grid"], row["size"])
    return rows


def skipped_of(folder):
    table = pq.read_table(folder / "skipped.parquet")
    return dict(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True))


def hashes(folder):
    return {part.get("file"): part.get("sha256") for part in read_manifest(folder)["units"]}
