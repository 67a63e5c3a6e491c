"""Eight bits on a CPU: the exported decoder, quantized by onnxruntime's own tools: speed and PSNR.

    python benchmarks/eight_bits_onnx.py imagenet-256/train-*.parquet    # images to calibrate with
    python benchmarks/eight_bits_onnx.py --toy                           # whether this script works

Convolutions of the tokenizer inside the package are quantized, weights for each output channel. ``dynamic`` takes the
range of each input as it comes, ``static`` those of the source's images; processors without VNNI overflow where both
factors have eight bits, hence the static one with 7-bit weights; ``inner`` leaves the first and the last convolution in
float32. Measured is decoding the demo images one at a time: processor time, the best of all.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from eight_bits import demo, encode, images, prepared, psnr
from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from gsqtok import ImageTokenizer
from gsqtok.evaluation.environment import environment
from gsqtok.export.export import export


class Calibration:
    """Tokens for onnxruntime's calibration, an image at a time."""

    def __init__(self, tokens: Tensor) -> None:
        self.rows = iter(tokens.cpu().numpy())

    def get_next(self) -> dict[str, Any] | None:
        row = next(self.rows, None)
        return None if row is None else {"tokens": row[None]}


def first_and_last(path: Path) -> list[str]:
    """Names of two convolutions; nodes are in the order in which they run."""
    names = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    return [names[0], names[-1]]


def measure(args: argparse.Namespace, tokenizer: ImageTokenizer, calibration: Tensor) -> list[dict[str, Any]]:
    """The decoder in float32 and quantized, a row each."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    images = demo(args.size)
    tokens = encode(tokenizer, images)
    samples = encode(tokenizer, calibration)
    signed, unsigned = QuantType.QInt8, QuantType.QUInt8
    static = partial(quantize_static, op_types_to_quantize=["Conv"], per_channel=True, activation_type=unsigned)
    static = partial(static, weight_type=signed)
    makers: dict[str, Callable[[Path, Path], Any]] = {
        "dynamic": lambda a, b: quantize_dynamic(a, b, ["Conv"], weight_type=unsigned),
        "static": lambda a, b: static(a, b, Calibration(samples)),
        "static, 7-bit weights": lambda a, b: static(a, b, Calibration(samples), reduce_range=True),
        "the same, inner": lambda a, b: static(
            a, b, Calibration(samples), reduce_range=True, nodes_to_exclude=first_and_last(a)
        ),
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(tokenizer, folder)
        quant_pre_process(folder / "decoder.onnx", folder / "plain.onnx", skip_symbolic_shape=True)
        truth = None
        print(
            f"\nonnxruntime {onnxruntime.__version__}, decoder, {images.shape[3]} px, batch 1, {args.threads} threads"
        )
        for way, make in {"float32": None, **makers}.items():
            path = folder / "plain.onnx"
            try:
                if make is not None:
                    path = folder / "quantized.onnx"
                    make(folder / "plain.onnx", path)
                session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
                found, best = [], math.inf
                for number in range(args.rounds * len(tokens)):
                    start = time.process_time()
                    (image,) = session.run(["images"], {"tokens": tokens[number % len(tokens), None].cpu().numpy()})
                    best = min(best, time.process_time() - start)
                    if number < len(tokens):
                        found.append(torch.from_numpy(image)[0])
            except Exception as error:  # whatever this version lacks
                print(f"{way:26} {' '.join(str(error).split())[:150]}", flush=True)
                continue
            mean = float(psnr(torch.stack(found), images).mean())
            truth = mean if truth is None else truth
            rows.append({"way": way, "images_per_second": 1 / best, "decoder": mean - truth})
            print(
                f"{way:26}{1 / best:>8.2f} img/s {path.stat().st_size / 2**20:>7.1f} MiB {mean - truth:>+8.3f} dB",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="*", help="images to calibrate with; none: the demo images")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--calibration", type=int, default=8, help="images that ranges are taken from")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="small images")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    if args.toy:
        args.size = 64
    torch.set_num_threads(args.threads)
    device = torch.device("cpu")
    record = environment(device) | {"command": " ".join(sys.argv), "onnxruntime": onnxruntime.__version__}
    print(f"{record['device']}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}")
    tokenizer = prepared(device)
    calibration = images(args.source, args.size, args.calibration, 0)[0] if args.source else demo(args.size)
    with torch.no_grad():
        rows = measure(args, tokenizer, calibration)
    if args.json:
        Path(args.json).write_text(json.dumps({"environment": record, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
