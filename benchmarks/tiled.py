"""A large image with and without tiles: peak memory, processor time, PSNR, and how many tokens are equal.

    python benchmarks/tiled.py                        # 2048 x 2048, tiles of 256, the tokenizer inside the package
    python benchmarks/tiled.py runs/mine --size 1024 --tile 512 --threads 8

Each way runs on the CPU, in a process of its own. Its memory is the peak resident memory of that process beyond what it
held with the tokenizer and the image loaded; time is user time, over all threads. The image is a mosaic of the
package's own, so that tokens are those of real content.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURE = "--measure"


def used() -> tuple[float, float]:
    """User seconds and peak resident MiB of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime, usage.ru_maxrss / 1024


def mosaic(size: int):
    """(1, 3, size, size) in [-1, 1]: central squares of the package's images, in turn, every other one mirrored."""
    import torch

    import gsqtok
    from gsqtok.data import decode_image, to_tensor

    squares = []
    for path in sorted((Path(gsqtok.__file__).parent / "demo_images").glob("*.png")):
        image = to_tensor(decode_image(path))
        top, left = ((n - 256) // 2 for n in image.shape[1:])
        square = image[:, top : top + 256, left : left + 256]
        squares += [square, square.flip(2)]
    count = range(-(-size // 256))
    rows = [torch.cat([squares[(row + 3 * column) % len(squares)] for column in count], 2) for row in count]
    return torch.cat(rows, 1)[None, :, :size, :size].contiguous()


def measure(model: str, size: int, tile: int, threads: int, target: str) -> None:
    """Print metrics of one way as JSON, and save tokens and image to ``target``; tile 0 is the whole at once."""
    import torch

    from gsqtok import ImageTokenizer
    from gsqtok.evaluation.similarity import similarity

    torch.set_num_threads(threads)
    tokenizer = ImageTokenizer.from_pretrained(model or None).eval()
    image = mosaic(size)
    tokenizer.decode(tokenizer.encode(image[:, :, :64, :64]))  # what libraries set aside on first use
    start = used()
    tokens = tokenizer.encode(image, tile=tile or None)
    middle = used()
    restored = tokenizer.decode(tokens, size=(size, size), tile=tile or None)
    end = used()
    torch.save({"tokens": tokens, "image": restored}, target)
    metrics = {
        "encode_s": middle[0] - start[0],
        "decode_s": end[0] - middle[0],
        "encode_mib": middle[1] - start[1],
        "both_mib": end[1] - start[1],
        "psnr": similarity(restored, image)["psnr"].item(),
    }
    print(json.dumps(metrics))


def main() -> None:
    """Measure both ways and compare them."""
    if len(sys.argv) > 1 and sys.argv[1] == MEASURE:
        measure(sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)

    import torch
    from table import Table, add_json

    add_json(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = {"way": ("way", ""), "encode_s": ("encode, s", ".0f"), "decode_s": ("decode, s", ".0f")}
    columns |= {"encode_mib": ("peak of encode, MiB", ",.0f"), "both_mib": ("peak of both, MiB", ",.0f")}
    table = Table(columns | {"psnr": ("PSNR, dB", ".4f")})
    outputs = []
    with tempfile.TemporaryDirectory() as folder:
        for name, tile in (("whole", 0), (f"tile {args.tile}", args.tile)):
            target = Path(folder) / f"{tile}.pt"
            command = [sys.executable, __file__, MEASURE, args.model, str(args.size), str(tile), str(args.threads)]
            done = subprocess.run([*command, str(target)], check=True, stdout=subprocess.PIPE, text=True)
            table.add({"way": name} | json.loads(done.stdout.splitlines()[-1]))
            outputs.append(torch.load(target))
    whole, tiled = outputs
    equal, total = int((whole["tokens"] == tiled["tokens"]).sum()), whole["tokens"].numel()
    error = float((whole["image"] - tiled["image"]).abs().max())
    print(f"tokens equal: {equal:,} of {total:,}; images within {error:.1e}")
    table.write(args.json, "cpu", size=args.size, tokens_equal=equal, tokens=total, images_within=error)


if __name__ == "__main__":
    main()
