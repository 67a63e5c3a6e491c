"""Metrics, facts and training of a model card, from docs/quality.json and what lies beside the card; for pages.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from gsqtok.tokenizer import ImageTokenizer, model_card

DATA = {  # as a card tells of them; in which order
    "imagenet-sample-256": "validation images of a sample of ImageNet",
    "coco-256": "everyday photographs like COCO's",
    "bsds500-256": "images of BSDS500",
    "tiny-imagenet-64": "validation images of Tiny ImageNet",
}
CARDS = {  # where they are: the tokenizers that they show, as docs/quality.json names them
    "src/gsqtok/embedded": ("embedded",),
    "pretrained/f8": ("f8",),
    "pretrained/f8-nested": ("f8-nested",),
    "pretrained/f16": ("f16", "f16?decoder=sharp"),
}
Record = dict[str, dict[str, Any]]
Table = Callable[[list[str], list[list[str]]], str]


def metadata(place: str, record: Record) -> str:
    """What stands before a card's title, for the hub; each decoder is a model of its own."""
    models: list[dict[str, Any]] = []
    for name in CARDS[place]:
        title = name if name == "embedded" else f"pretrained/{name}"
        results = [
            EvalResult("image-to-image", data, data, metric, round(value, 4), task_name="image reconstruction")
            for data in DATA
            for metric, value in record[f"{data}/{name}"]["metrics"].items()
        ]
        models += ModelCardData(model_name=title, eval_results=results).to_dict()["model-index"]
    about = {
        "library_name": "gsqtok",
        "pipeline_tag": "image-to-image",
        "tags": ["image-tokenizer", "vector-quantization", "quantizer-gsq"],
        "model-index": models,
    }
    return yaml.safe_dump(about, sort_keys=False)


def facts(folder: Path, names: tuple[str, ...], record: Record, table: Table) -> str:
    """What the tokenizer is, as every card has it; its files, and the fingerprint with each further decoder."""
    rows = model_card.facts(ImageTokenizer.from_pretrained(folder))
    first = rows.pop("fingerprint")
    files = [folder / "model.safetensors", *sorted(folder.glob("decoder-*.safetensors"))]
    rows["files, float16"] = ", ".join(f"`{file.name}` {file.stat().st_size / 1e6:.1f} MB" for file in files)
    rows["fingerprint"] = first
    for name in names[1:]:
        rows[f"fingerprint, `{name[4:]}`"] = f"`{record[f'{next(iter(DATA))}/{name}']['model']['fingerprint']}`"
    return table(["<", "<"], [[key, value] for key, value in rows.items()])


def metrics(names: tuple[str, ...], record: Record, quality: Callable[[str, str, float], str]) -> str:
    """A table for each data set; codecs and the other tokenizers of about this rate are beside it."""
    parts = []
    for data, told in DATA.items():
        line = record[f"{data}/{names[0]}"]
        rate = line["metrics"]["bits_per_pixel"]
        codecs = [
            value for key, value in record.items() if key.startswith(f"{data}/codec") and key.endswith(f"@{rate}")
        ]
        where = f"measured on {_measured([record[f'{data}/{name}'] for name in names])}"
        where += f"; codecs on {_measured(codecs)}" if codecs else "; codecs were not measured"
        parts += [f"`{data}`: {line['images']:,} {told} at {line['size']} px, {where}.", quality(data, data, rate)]
    return "\n\n".join(parts)


def _measured(lines: list[dict[str, Any]]) -> str:
    """Devices and dates."""
    found = dict.fromkeys(
        f"{'an ' * ('H200' in x['device'])}{x['device'].replace('CPU', 'a CPU')}, {x['date']}" for x in lines
    )
    return " and ".join(found)


def training(folder: Path, table: Table) -> str:
    """The stages of the training that training.json tells of, and what it does not tell."""
    record = json.loads((folder / "training.json").read_text())
    later = [record[key] for key in ("decoder", "decoder_sharp") if key in record]
    first = record | {"what": f"recipe `{record['recipe']}`"}
    heads = ["<stage", "<images", "seconds", "last step logged", "<hardware", "<precision", "seed", "PyTorch", "<date"]
    keys = ("what", "data", "seconds", "steps", "hardware", "precision", "seed", "torch", "date")
    for stage in (first, *later):
        curves = stage.get("stages", [stage.get("curve")])
        stage["steps"] = " and ".join(f"{curve[-1]['step']:,}" for curve in curves)
    parts = [table(heads, [[str(stage.get(key, "not on record")) for key in keys] for stage in (first, *later)])]
    for stage in later:
        parts.append(f"Losses of the decoder's stage: {'; '.join(stage['losses'])}.")
        parts.append(f"**Not on record** for it: {'; '.join(stage['not_on_record'])}.")
    return "\n\n".join(parts)
