"""What eight bits in the convolutions do to tokens and images.

    python benchmarks/eight_bits.py tiny-imagenet-64/validation-*.parquet --size 64     # on any device
    python benchmarks/eight_bits.py --toy                                               # whether this script works

The tokenizer inside the package on its demo images and on those of a source, against float32. Weights of a
convolution are rounded with a scale for each output channel, its input with one scale for the tensor, from the range of
this input (dynamic) or of other images (calibrated: the source's last ones, which are not measured). float8 is e4m3,
through torch's own cast; int8 is symmetric for weights and has a zero point for inputs. Products are summed in float32
and results rounded to bfloat16; statistics of norms and the quantizer are float32. bfloat16 itself
(`ImageTokenizer.optimize`) is beside it in the same rounding.
``all``: every convolution; ``inner``: all but the first and the last of each network, which are in bfloat16.
A way is kept if images that went through both networks lose no more than 0.05 dB on each set.

What a GPU could gain is in `benchmarks/eight_bits_speed.py`, what a CPU does in `benchmarks/eight_bits_onnx.py`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import gsqtok
from gsqtok import ImageTokenizer
from gsqtok.acceleration import accelerate
from gsqtok.data import ImageTransform, eval_loader, open_source
from gsqtok.evaluation.environment import environment

Kind = Literal["float8", "int8", "bfloat16"]
FLOAT8 = torch.float8_e4m3fn
LARGEST = {"float8": torch.finfo(FLOAT8).max, "int8": 127}  # 448
AT_ONCE = 2**16  # pixels that go through a network, and that a dynamic scale is of
RULE = 0.05  # dB that reconstruction may lose


# Rounding


def rounded_weight(weight: Tensor, kind: Kind) -> Tensor:
    """(N, C, h, w) in eight bits, times its scale: one for each output channel."""
    if kind == "bfloat16":
        return weight.bfloat16().float()
    largest = weight.abs().amax((1, 2, 3)).clamp_min(1e-12)
    if kind == "int8":
        zero = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(weight, largest / LARGEST[kind], zero, 0, -127, 127)
    scale = (largest / LARGEST[kind])[:, None, None, None]
    return (weight / scale).to(FLOAT8).float() * scale


def rounded_input(x: Tensor, kind: Kind, limits: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """x in eight bits, times its scale; limits are the least and greatest value expected, None: those of x."""
    if kind == "bfloat16":
        return x.bfloat16().float()
    low, high = torch.aminmax(x) if limits is None else limits
    if kind == "int8":  # 0 is among the values, so that padding is exact
        low, high = low.clamp_max(0), high.clamp_min(0)
        scale = ((high - low) / 255).clamp_min(1e-12)
        return torch.fake_quantize_per_tensor_affine(x, scale, (-low / scale).round().int(), 0, 255)
    scale = torch.maximum(low.abs(), high.abs()).clamp_min(1e-12) / LARGEST[kind]
    # torch's cast of what is beyond the largest value gives NaN, the hardware's saturates
    return (x / scale).clamp(-LARGEST[kind], LARGEST[kind]).to(FLOAT8).float() * scale


def check() -> None:
    """The rounding against closed forms."""
    x = (
        torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-3, 3, 64)[:, None, None, None]
    )
    weight = rounded_weight(x, "int8")
    step = x.abs().amax((1, 2, 3), keepdim=True) / 127
    assert ((weight - x).abs() <= step / 2 * 1.0001).all()
    assert torch.allclose(weight / step, (weight / step).round(), atol=1e-3)
    # e4m3: 3 bits after the point, least exponent -6, so a relative error of 1/16 or half of 2^-9
    weight = rounded_weight(x, "float8")
    step = x.abs().amax((1, 2, 3), keepdim=True) / 448
    exact = (x.double() / step.double()).abs()
    ulp = 2.0 ** (exact.clamp_min(2.0**-6).log2().floor() - 3)
    assert ((weight.double() / step.double()).abs() - exact).abs().le(ulp / 2 * 1.0001).all()
    x = torch.linspace(-0.3, 5, 1001)
    found = rounded_input(x, "int8")
    assert len(found.unique()) <= 256
    assert float((found - x).abs().max()) <= 5.3 / 255
    assert float(rounded_input(torch.zeros(4), "int8").abs().max()) == 0
    assert float(rounded_input(x, "float8").max()) == 5  # the largest value is exact
    low, high = torch.tensor(-1.0), torch.tensor(2.0)
    for kind in ("float8", "int8"):  # beyond the limits values are cut off
        assert abs(float(rounded_input(x, kind, (low, high)).max()) - 2) < 0.02
    assert torch.equal(rounded_input(x, "bfloat16"), x.bfloat16().float())


# Quality


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def round_convolutions(network: nn.Module, kind: Kind, edges: Kind, limits: dict[str, tuple[Tensor, Tensor]]) -> None:
    """In place: the plain formula then computes with rounded weights, inputs and results."""
    for name, conv in convolutions(network).items():
        own = edges if name in ("conv_in", "conv_out") else kind
        if own == "bfloat16" and name == "conv_out" and conv.kernel_size == (1, 1):
            continue  # `optimize` leaves the encoder's last layer in float32
        conv.weight.data = rounded_weight(conv.weight.data, own)
        known = limits.get(name)
        conv.register_forward_pre_hook(lambda _, args, own=own, known=known: (rounded_input(args[0], own, known),))
        conv.register_forward_hook(lambda _, args, out: out.bfloat16().float())


def run(network: nn.Module, x: Tensor, pixels: int) -> Tensor:
    parts = x.split(max(1, AT_ONCE * len(x) // pixels))
    return torch.cat([network(part.contiguous(memory_format=torch.channels_last)) for part in parts])


def encode(tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    latent = run(tokenizer.encoder, images, images[:, 0].numel())
    return tokenizer.quantizer(latent.movedim(1, -1)).indices


def decode(tokenizer: ImageTokenizer, tokens: Tensor) -> Tensor:
    pixels = math.prod(tokens.shape[:3]) * tokenizer.factor**2
    return run(tokenizer.decoder, tokenizer.quantizer.decode(tokens).movedim(-1, 1), pixels).clamp(-1, 1)


def ranges(tokenizer: ImageTokenizer, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The least and the greatest input of each convolution, by "encoder." or "decoder." and its name."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def see(_: nn.Module, args: tuple[Tensor], name: str) -> None:
        low, high = torch.aminmax(args[0])
        before = found.get(name, (low, high))
        found[name] = torch.minimum(low, before[0]), torch.maximum(high, before[1])

    hooks = [
        conv.register_forward_pre_hook(partial(see, name=f"{side}.{name}"))
        for side in ("encoder", "decoder")
        for name, conv in convolutions(getattr(tokenizer, side)).items()
    ]
    decode(tokenizer, encode(tokenizer, images))
    for hook in hooks:
        hook.remove()
    return found


def ways() -> Iterator[tuple[str, Kind, Kind, bool]]:
    """Name, kind of the convolutions, of the first and last, whether calibrated."""
    yield "bfloat16", "bfloat16", "bfloat16", False
    for kind in ("float8", "int8"):
        for scale in ("dynamic", "calibrated"):
            yield f"{kind} {scale}, all", kind, kind, scale == "calibrated"
            yield f"{kind} {scale}, inner", kind, "bfloat16", scale == "calibrated"


def psnr(found: Tensor, images: Tensor) -> Tensor:
    return 10 * torch.log10(4 / (found - images).square().mean((1, 2, 3)))


@torch.no_grad()
def quality(tokenizer: ImageTokenizer, name: str, images: Tensor, limits: dict[str, Any]) -> list[dict[str, Any]]:
    """Every way as encoder alone, decoder alone and both, against float32 on the same images."""
    truth = encode(tokenizer, images)
    plain = psnr(decode(tokenizer, truth), images)
    print(
        f"\n{name}: {len(images)} images of {images.shape[3]} px, {tokenizer.bits_per_pixel:.2f} bits/px, "
        f"{truth.numel():,} tokens; float32 {float(plain.mean()):.3f} dB\n"
        f"{'':26}{'equal tokens':>13}{'encoder':>10}{'decoder':>10}{'both, dB':>10}{'worst':>10}",
        flush=True,
    )
    rows = []
    for way, kind, edges, calibrated in ways():
        changed = copy.deepcopy(tokenizer)
        for side in ("encoder", "decoder"):
            own = {k.removeprefix(f"{side}."): v for k, v in limits.items() if k.startswith(side)}
            round_convolutions(getattr(changed, side), kind, edges, own if calibrated else {})
        tokens = encode(changed, images)
        differences = {
            "encoder": psnr(decode(tokenizer, tokens), images) - plain,
            "decoder": psnr(decode(changed, truth), images) - plain,
            "both": psnr(decode(changed, tokens), images) - plain,
        }
        row = {
            "part": "quality", "images": name, "count": len(images), "size": images.shape[3], "way": way,
            "bits_per_pixel": tokenizer.bits_per_pixel, "psnr_float32": float(plain.mean()),
            "equal": float((tokens == truth).double().mean()), "worst": float(differences["both"].min()),
            **{part: float(difference.mean()) for part, difference in differences.items()},
        }  # fmt: skip
        rows.append(row)
        kept = "" if kind == "bfloat16" else "  kept" if row["both"] >= -RULE else "  not kept"
        print(
            f"{way:26}{row['equal']:>13.2%}{row['encoder']:>+10.3f}{row['decoder']:>+10.3f}{row['both']:>+10.3f}"
            f"{row['worst']:>+10.3f}{kept}",
            flush=True,
        )
    return rows


def source_images(source: str | Path | list[str], size: int, first: int, last: int) -> tuple[Tensor, Tensor]:
    """The source's first images and its last, (B, 3, size, size) in [-1, 1]."""
    dataset = open_source(source)
    if first + last > len(dataset):
        raise ValueError(
            f"{first} images and {last} others to calibrate with are more than the {len(dataset)} there are"
        )
    keys = dataset.all_keys()
    chosen = {*keys[:first], *keys[len(keys) - last :]}
    batches = eval_loader(dataset, ImageTransform(size), batch_size=64, keys=chosen)
    images = torch.cat([batch["image"] for batch in batches])
    return images[:first], images[first:]


def prepared(device: torch.device) -> ImageTokenizer:
    """The tokenizer in float32 by the plain formula, channels innermost."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    tokenizer = ImageTokenizer.from_pretrained().eval().requires_grad_(False).to(device)
    accelerate(tokenizer, enabled=False)
    return tokenizer.to(memory_format=torch.channels_last)


def demo(size: int) -> Tensor:
    return source_images(Path(gsqtok.__file__).parent / "demo_images", size, 5, 0)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="*", help="images (files, a folder); none: the demo images alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=64, help="of the source's images")
    parser.add_argument("--count", type=int, default=256, help="of the source's images")
    parser.add_argument("--calibration", type=int, default=64, help="images that ranges are taken from")
    parser.add_argument("--toy", action="store_true", help="small images")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    check()
    device = torch.device(args.device)
    record = environment(device) | {"command": " ".join(sys.argv)}
    print(f"{record['device']}, torch {torch.__version__}, gsqtok {record['gsqtok']}")
    tokenizer = prepared(device)
    sets = {"demo": demo(64 if args.toy else 256)}
    calibration = sets["demo"]
    if args.source:
        first, calibration = source_images(args.source, args.size, args.count, args.calibration)
        sets = {"source": first} | sets
    with torch.no_grad():
        limits = ranges(tokenizer, calibration.to(device))
        rows = [row for name, images in sets.items() for row in quality(tokenizer, name, images.to(device), limits)]
    if args.json:
        Path(args.json).write_text(json.dumps({"environment": record, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
