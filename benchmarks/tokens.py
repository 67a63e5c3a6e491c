"""Token data sets: reading a million rows, disk for a row, and the pipeline against the bare encoder.

    python benchmarks/tokens.py read                                  # 1,000,000 made-up rows of 256 tokens, V = 8192
    python benchmarks/tokens.py decode images.parquet --size 256    # images/s a core of each JPEG decoder
    python benchmarks/tokens.py pipeline images.parquet --model runs/mine --precision bfloat16

``read`` makes the rows in a temporary folder (0.5 GB, and as much unpacked), then opens them in a fresh process: the
first access to each shard unpacks it, which is timed apart, as is the second process, which finds the unpacked files.
Memory is what the process holds for itself; pages of mapped files belong to the system, which takes them back at need.

``pipeline`` packs the JPEG images of a parquet file, again and again until there are 100,000, into tar shards, and
compares the images/s of ``tokenize`` with those of the encoder alone on pixels that are already on the device, in the
same batches: over the whole run, and from the first finished chunk to the last, which is without starting the processes
that decode and without writing the last shards.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from table import Table, add_json


def made_up(folder: Path, rows: int, tokens: int, codebook_size: int) -> None:
    """A token data set of random tokens, one group, square grids."""
    import pyarrow as pa

    from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig
    from gsqtok.tokens import manifest
    from gsqtok.tokens.crops import Crops
    from gsqtok.tokens.plan import Plan, Unit, keys_digest, write_plan
    from gsqtok.tokens.shards import shard_schema

    quantizer = {"name": "gsq", "groups": 1, "codebook_size": codebook_size}
    tokenizer = ImageTokenizer(TokenizerConfig(latent_dim=8, channels=32, quantizer=quantizer))
    header = manifest.header(tokenizer, Crops(256).settings())
    schema = shard_schema(codebook_size, [pa.field("label", pa.int64())], header)
    generator, side, shard = np.random.default_rng(0), int(tokens**0.5), 8192
    keys = [[f"train-{row:07d}" for row in range(a, min(a + shard, rows))] for a in range(0, rows, shard)]
    units = [Unit(number, len(own), keys_digest(own), ()) for number, own in enumerate(keys)]
    plan = Plan({"columns": [["label", "int64"]]}, 1, tuple(units))
    write_plan(folder, plan)
    for unit, own in zip(units, keys, strict=True):
        n = len(own)
        flat = generator.integers(0, codebook_size, n * tokens).astype(np.min_scalar_type(codebook_size - 1))
        offsets = np.arange(0, n * tokens + 1, tokens, dtype=np.int32)
        columns = {
            "key": own,
            "crop": np.zeros(n, np.uint8),
            "tokens": pa.ListArray.from_arrays(offsets, flat),
            "grid": pa.array([[side, side, 1]] * n, schema.field("grid").type),
            "size": pa.array([[500, 375]] * n, schema.field("size").type),
            "label": generator.integers(0, 1000, n),
        }
        manifest.write_part(folder, unit, len(units), pa.table(columns, schema=schema), [])
    manifest.finish(folder, plan, header | {"model": None, "source": "made up"})


def own_memory() -> float:
    """MB that this process holds for itself, without pages of mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def read_once(folder: str, cache: str, accesses: int) -> None:
    """Print the metrics of one fresh process as JSON."""
    from gsqtok.tokens import TokenDataset

    start = time.perf_counter()
    dataset = TokenDataset(folder, cache=cache, columns=("label",))
    opened = time.perf_counter() - start
    start = time.perf_counter()
    for shard in range(0, len(dataset), 8192):
        dataset[shard]
    unpacked = time.perf_counter() - start
    order = np.random.default_rng(1).integers(0, len(dataset), accesses).tolist()
    start = time.perf_counter()
    for row in order:
        dataset[row]
    rate = accesses / (time.perf_counter() - start)
    print(json.dumps({"open": opened, "unpack": unpacked, "rate": rate, "memory": own_memory()}))


def read(args: argparse.Namespace) -> None:
    """Make rows, read them in two processes one after the other."""
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        made_up(folder / "tokens", args.rows, args.tokens, args.codebook_size)
        shards = sum(file.stat().st_size for file in (folder / "tokens/data").iterdir())
        stored = args.tokens * np.min_scalar_type(args.codebook_size - 1).itemsize
        bits = args.tokens * np.log2(args.codebook_size) / 8
        disk = {"bytes_a_row": shards / args.rows, "bytes_of_integers": stored, "bytes_at_log2_v": bits}
        print(*(f"{name} {value:.1f}" for name, value in disk.items()), sep=", ")
        columns = {"process": ("process", ""), "open": ("open, s", ".2f"), "unpack": ("unpack, s", ".2f")}
        table = Table(columns | {"rate": ("random rows/s", ",.0f"), "memory": ("memory, MB", ".0f")})
        for process in ("first", "second"):
            command = [sys.executable, __file__, "read-once", name + "/tokens", name + "/cache", str(args.accesses)]
            metrics = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            table.add({"process": process} | metrics)
        table.write(args.json, "cpu", **disk)


def jpegs(parquet: str) -> list[bytes]:
    """The JPEG images of a parquet file."""
    import pyarrow.parquet as pq

    images = pq.read_table(parquet, columns=["image"])["image"].to_pylist()
    return [image["bytes"] for image in images if image["bytes"][:2] == b"\xff\xd8"]


def decode(args: argparse.Namespace) -> None:
    """Images/s a core: decoding alone, and with the resizing and cropping that follow."""
    import simplejpeg
    import torch
    from PIL import Image
    from torchvision.io import decode_jpeg
    from torchvision.transforms import v2

    from gsqtok.tokens.crops import Crops

    torch.set_num_threads(1)
    data, crops, fast = jpegs(args.source)[:300], Crops(args.size), Crops(args.size, fast=True)
    resize = v2.Compose([v2.Resize(args.size, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(args.size)])

    def pillow(image: bytes) -> Image.Image:
        return Image.open(io.BytesIO(image)).convert("RGB")

    def simple(image: bytes) -> Image.Image:
        return Image.fromarray(simplejpeg.decode_jpeg(image, "RGB"))

    def vision(image: bytes) -> torch.Tensor:
        return decode_jpeg(torch.frombuffer(bytearray(image), dtype=torch.uint8))

    decoders = {"Pillow": (pillow, crops), "simplejpeg": (simple, crops), "torchvision": (vision, resize)}
    decoders |= {"simplejpeg, --fast-resize": (simple, fast)}
    works = {
        (name, whole): (lambda image, d=decoder, r=rest: r(d(image))) if whole else decoder
        for name, (decoder, rest) in decoders.items()
        for whole in (False, True)
    }
    best = dict.fromkeys(works, float("inf"))
    for _ in range(5):  # in turn, so that none has the machine when it is quiet
        for key, work in works.items():
            start = time.process_time()
            for image in data:
                work(image)
            best[key] = min(best[key], time.process_time() - start)
    columns = {"decoder": ("decoder", ""), "alone": ("images/s a core", ",.0f")}
    table = Table(columns | {"whole": ("with resizing and cropping", ",.0f")})
    for name in decoders:
        alone, whole = (len(data) / best[name, whole] for whole in (False, True))
        table.add({"decoder": name, "alone": alone, "whole": whole})
    table.write(args.json, "cpu")


def pipeline(args: argparse.Namespace) -> None:
    """``tokenize`` from JPEG tar shards against the bare encoder."""
    import torch

    from gsqtok.tokenizer import ImageTokenizer
    from gsqtok.tokens.crops import Crops
    from gsqtok.tokens.encode import Encode
    from gsqtok.tokens.run import RunOptions, tokenize

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = ImageTokenizer.from_pretrained(args.model).to(device)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        pack(jpegs(args.source), Path(name), args.images)
        encode = Encode(tokenizer, side=args.size, precision=args.precision)
        seconds = 1.0 if device == "cpu" else 5.0
        bare = encode.images_per_second(encode.batch_size, seconds)
        options = RunOptions(
            crops=Crops(args.size, fast=args.fast_resize),
            precision=args.precision,
            workers=args.workers,
            batch_size=encode.batch_size,
        )
        result = tokenize(tokenizer, name + "/*.tar", name + "/tokens", options)
        metrics = result.metrics
        print(f"{args.images:,} images by repeating, batches of {encode.batch_size} at most:")
        rate, wait = metrics["images_per_second"], metrics["waiting"]
        steady = metrics["steady_images_per_second"] or rate
        columns = {"what": ("what", ""), "rate": ("images/s", ",.0f"), "share": ("of the encoder", ".1%")}
        table = Table(columns)
        table.add({"what": "bare encoder", "rate": bare})
        table.add({"what": "tokenize, whole", "rate": rate, "share": rate / bare})
        table.add({"what": "tokenize, first finished chunk to last", "rate": steady, "share": steady / bare})
        table.add({"what": "decoding, a core", "rate": metrics["decoded_per_core_second"]})
        print(f"the model waited {wait:.1%} of the time for images, which {result.workers} processes decode")
        about = {"seconds": metrics["seconds"], "waiting": wait, "workers": result.workers}
        table.write(args.json, device, images=args.images, batch_size=encode.batch_size, **about)


def pack(images: list[bytes], folder: Path, number: int) -> None:
    """Tar shards of 1000 images; when all images are in one, further shards are links."""
    repeated, different = itertools.cycle(images), -(-len(images) // 1000)
    for first in range(0, number, 1000):
        if first // 1000 >= different and first + 1000 <= number:
            os.link(folder / f"{first // 1000 % different:05d}.tar", folder / f"{first // 1000:05d}.tar")
            continue
        with tarfile.open(folder / f"{first // 1000:05d}.tar", "w") as archive:
            for row in range(first, min(first + 1000, number)):
                data = next(repeated)
                info = tarfile.TarInfo(f"{row:07d}.jpg")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def main() -> None:
    """See above."""
    if sys.argv[1:2] == ["read-once"]:
        read_once(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("read", "decode", "pipeline"))
    p.add_argument("source", nargs="?", help="decode, pipeline: a parquet file with JPEG images")
    p.add_argument("--folder", default=os.environ.get("TMPDIR"), help="where temporary files go")
    p.add_argument("--rows", type=int, default=1_000_000)
    p.add_argument("--tokens", type=int, default=256, help="of a row, a square number")
    p.add_argument("--codebook-size", type=int, default=8192)
    p.add_argument("--accesses", type=int, default=200_000)
    p.add_argument("--size", type=int, default=256)
    p.add_argument("--model")
    p.add_argument("--images", type=int, default=100_000)
    p.add_argument("--workers", type=int)
    p.add_argument("--precision", default="float32")
    p.add_argument("--fast-resize", action="store_true")
    add_json(p)
    args = p.parse_args()
    if args.what != "read" and args.source is None:
        p.error(f"{args.what} needs a parquet file with JPEG images")
    {"read": read, "decode": decode, "pipeline": pipeline}[args.what](args)


if __name__ == "__main__":
    main()
