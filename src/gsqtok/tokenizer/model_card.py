"""The model card of a saved tokenizer: what it is, how to use it, and metrics with how they were measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import EvalResult, ModelCardData
from PIL import Image

from gsqtok.data import load_image
from gsqtok.data.display import grid

if TYPE_CHECKING:
    from gsqtok.evaluation.result import Result
    from gsqtok.tokenizer import ImageTokenizer

CARD_FILE = "README.md"
IMAGE_FILE = "reconstructions.webp"
DEMO_IMAGES = Path(__file__).parent.parent / "demo_images"
SHOWN_IMAGES = 3
GENERATED = "<!-- Written by gsqtok, and written anew with each save. Remove this line to keep what you change. -->"
# As tables of tokenizers show them: name, unit, digits.
_SHOWN = {
    "psnr": ("PSNR", "dB", 2),
    "ssim": ("SSIM", "", 4),
    "ms_ssim": ("MS-SSIM", "", 4),
    "lpips": ("LPIPS", "", 4),
    "rfid": ("rFID", "", 2),
    "usage": ("codebook usage", "", 4),
    "perplexity": ("perplexity", "", 1),
}


def write_card(
    folder: Path,
    tokenizer: ImageTokenizer,
    name: str,
    evaluation: Result | Mapping[str, Any] | str | Path | None = None,
    license: str | None = None,
    with_image: bool = False,
) -> None:
    """Write the card, unless the folder holds one that somebody wrote or changed (without the line ``GENERATED``).

    Args:
        folder: where it goes.
        tokenizer, name, evaluation, license: as for ``model_card``.
        with_image: show some of the package's images and what the tokenizer makes of them.
    """
    path = folder / CARD_FILE
    if path.exists() and GENERATED not in path.read_text(encoding="utf-8"):
        return
    if with_image:
        reconstructions(tokenizer).save(folder / IMAGE_FILE, quality=95)
    path.write_text(model_card(tokenizer, name, evaluation, license, with_image), encoding="utf-8")


def reconstructions(tokenizer: ImageTokenizer) -> Image.Image:
    """Some of the package's images above what the tokenizer makes of them."""
    size, training = tokenizer.size or 256, tokenizer.training
    files = sorted(DEMO_IMAGES.glob("*.png"))[:SHOWN_IMAGES]
    images = torch.cat([load_image(file, size=size, crop="center") for file in files])
    tokenizer.eval()
    restored = tokenizer.decode(tokenizer.encode(images.to(tokenizer.device)), size=(size, size)).cpu()
    tokenizer.train(training)
    return grid([*images, *restored], len(images))


def model_card(
    tokenizer: ImageTokenizer,
    name: str,
    evaluation: Result | Mapping[str, Any] | str | Path | None = None,
    license: str | None = None,
    with_image: bool = False,
) -> str:
    """The card as Markdown with the hub's metadata in front.

    Args:
        tokenizer: what the card is of.
        name: the folder or hub repository, for the title and the example.
        evaluation: what ``gsqtok.evaluate`` returned, the JSON file of ``gsqtok evaluate -o``, or what that holds.
        license: of the weights, as the hub names it (``"mit"``, ``"apache-2.0"``); None says nothing.
        with_image: show ``IMAGE_FILE``, which lies beside the card.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no result of an evaluation (``ResultError``), or one of another tokenizer.
    """
    result = None if evaluation is None else _read_evaluation(evaluation, tokenizer)
    metrics = {} if result is None else {k: v for k, v in result.metrics.items() if v is not None}
    data = ModelCardData(
        library_name="gsqtok",
        pipeline_tag="image-to-image",
        tags=["image-tokenizer", "vector-quantization", f"quantizer-{tokenizer.quantizer.name}"],
        license=license,
        # The hub lists metrics by model; these need a name.
        model_name=name if metrics else None,
        eval_results=None if result is None else [_eval_result(result, *metric) for metric in metrics.items()] or None,
    )
    sections = [f"---\n{data.to_yaml()}\n---", GENERATED, _what_it_is(tokenizer, name, with_image)]
    if result is not None and metrics:
        sections.append(_metrics(result, metrics))
    return "\n\n".join(sections) + "\n"


def facts(tokenizer: ImageTokenizer) -> dict[str, str]:
    """What a tokenizer is, line by line, as a card's table has it; the fingerprint comes last."""
    quantizer = tokenizer.quantizer
    parameters = sum(p.numel() for p in tokenizer.parameters()) / 1e6
    config = tokenizer.config.to_dict().get("quantizer")
    described = config if isinstance(config, dict) else quantizer.config
    options = ", ".join(f"{k} = {v}" for k, v in described.items() if k not in ("name", "dim"))
    return {
        "down-sampling factor": f"{tokenizer.factor}",
        "tokens per position": f"{quantizer.tokens_per_position}, each one of {quantizer.codebook_size:,}",
        "bits per pixel": f"{tokenizer.bits_per_pixel:.4g} ({quantizer.bits:g} bits per position)",
        "latent channels": f"{quantizer.dim}",
        "quantizer": f"`{quantizer.name}` ({options})" if options else f"`{quantizer.name}`",
        "networks": tokenizer.config.summary(),
        "parameters": f"{parameters:.2f} M",
        "fingerprint": f"`{tokenizer.fingerprint()}`",
    }


def _what_it_is(tokenizer: ImageTokenizer, name: str, with_image: bool) -> str:
    table = "\n".join(f"| {key} | {value} |" for key, value in facts(tokenizer).items())
    rule = f', size={tokenizer.size}, crop="center"' if tokenizer.size else ""
    shown = f"![Images above their reconstructions]({IMAGE_FILE})\n\n" if with_image else ""
    return f"""# {name.rpartition("/")[2]}

An image tokenizer: images to grids of discrete tokens and back, with [gsqtok](https://arxiv.org/abs/2412.02632).

{shown}```bash
pip install gsqtok
```

```python
import gsqtok

tokenizer = gsqtok.ImageTokenizer.from_pretrained("{name}")
images = gsqtok.load_image("image.jpg"{rule})  # (B, 3, H, W) in [-1, 1]
tokens = tokenizer.encode(images)  # (B, h, w, {tokenizer.quantizer.tokens_per_position}) int64
restored = tokenizer.decode(tokens)
```

| | |
|---|---|
{table}"""


def _metrics(result: Result, metrics: Mapping[str, float]) -> str:
    rows = []
    for key, value in metrics.items():
        title, unit, digits = _SHOWN.get(key, (key.replace("_", " "), "", None))
        shown = f"{value:g}" if digits is None else f"{value:.{digits}f}"
        rows.append(f"| {title} | {shown} {unit}".rstrip() + " |")
    data, protocol = result.data, result.protocol
    split = f", split {data['split']}" if data.get("split") else ""
    how = ", ".join(f"{k.replace('_', ' ')} {_word(v)}" for k, v in protocol.items() if k != "name" and v is not None)
    lines = "\n".join(rows)
    return f"""## Metrics

Measured on {data["images"]:,} images of {data["source"]}{split}; protocol {protocol["name"]}: {how}.

| metric | value |
|---|---|
{lines}"""


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"of {value['network']}" if value.get("network") else json.dumps(dict(value))
    return str(value)


def _eval_result(result: Result, metric: str, value: float) -> EvalResult:
    data = result.data
    return EvalResult(
        task_type="image-to-image",
        task_name="image reconstruction",
        dataset_type=str(data["source"]),
        dataset_name=str(data["source"]),
        dataset_split=data.get("split"),
        metric_type=metric,
        metric_value=value,
    )


def _read_evaluation(evaluation: Result | Mapping[str, Any] | str | Path, tokenizer: ImageTokenizer) -> Result:
    from gsqtok.evaluation.result import Result

    if isinstance(evaluation, (str, Path)):
        what, result = str(evaluation), Result.load(evaluation)
    else:
        what = "the evaluation"
        result = evaluation if isinstance(evaluation, Result) else Result.from_dict(evaluation)
    measured, own = result.model["fingerprint"], tokenizer.fingerprint()
    if measured != own:
        raise ValueError(f"{what} measured another tokenizer (fingerprint {str(measured)[:12]}, this is {own[:12]})")
    return result
