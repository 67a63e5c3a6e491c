"""Published tokenizers against what the official code makes of the same files, and how fast they are.

    python benchmarks/published.py measure -o docs/published.json   # needs the fixtures beside the repository
    python benchmarks/published.py table docs/published.json docs/results/published.md

Files: tiny networks in the official formats, with random weights, and the tokens and images that the official code
made. Speed: networks of the published size with random weights, one image at a time, encoded and decoded again; in
seconds of processor time on one thread, so that other work on the machine changes little.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

import torch

from gsqtok.evaluation.environment import environment
from gsqtok.published import PublishedConfig
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "published"))
from fixtures import FIXTURES, Fixture

WIDTHS = {"channels": 128, "widths": [128, 128, 256, 256, 512]}
TAMING = WIDTHS | {"blocks": 2, "attention": [4], "latent_channels": 256, "kernel": 1, "codebook_size": 16384}
MASKGIT = WIDTHS | {"blocks": 2, "middle": 2}
LARGE, BASE = {"width": 1024, "layers": 24, "side": 16}, {"width": 768, "layers": 12, "hidden": 3072}


def magvit2(channels: int, bits: int, groups: int) -> TokenizerConfig:
    return TokenizerConfig(
        latent_dim=bits,
        channels=channels,
        multipliers=(1, 1, 2, 2, 4),
        encoder_blocks=(4, 4, 3, 4, 3),
        decoder_blocks=(4, 3, 4, 3, 4),
        encoder_middle_blocks=4,
        decoder_middle_blocks=4,
        adaptive_norm=True,
        depth_to_space=True,
        norm_eps=1e-6,
        quantizer={"name": "lfq", "groups": groups},
    )


# What is published, as far as the formats' description says: model, and configuration or options.
SIZES = {
    "taming": ("f16, 16384", TAMING | {"dim": 256}),
    "llamagen": ("VQ-16", TAMING | {"dim": 8}),
    "ibq": ("16384", TAMING | {"dim": 256, "blocks": 4}),
    "open_magvit2": ("f16, 2^18", magvit2(128, 18, 1)),
    "bitdance": ("d16c32", magvit2(256, 32, 4)),
    "maskgit": ("f16, 1024", MASKGIT | {"dim": 256, "codebook_size": 1024}),
    "maskbit": ("12 bits", MASKGIT | {"dim": 12, "codebook_size": None, "legacy": False}),
    "titok": (
        "L-32",
        {
            **{"encoder": LARGE, "decoder": LARGE, "patch": 16, "length": 32, "dim": 12, "codebook_size": 4096},
            **{"l2_norm": True, "pixels": {"codewords": 1024, "networks": MASKGIT | {"dim": 256}}},
        },
    ),
    "bsq_vit": (
        "18 bits, f8",
        {
            "encoder": BASE,
            "decoder": BASE | {"ffn": 3072},
            "heads": 12,
            "side": 32,
            "patch": 8,
            "dim": 18,
            "unit": False,
        },
    ),
    "var": (
        "ch160v4096z32",
        TAMING
        | {"channels": 160, "widths": [160, 160, 320, 320, 640], "latent_channels": 32, "dim": 32, "kernel": 3}
        | {"codebook_size": 4096, "scales": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], "convolutions": 4},
    ),
    "emu3": ("default", {"config": {}, "mean": [0.5] * 3, "std": [0.5] * 3}),
}
del SIZES["titok"][1]["pixels"]["networks"]["channels"]  # of an encoder, which it does not have


@torch.no_grad()
def compare(fixture: Fixture) -> dict:
    """How many tokens are the official ones, and how far the images are from theirs."""
    tokenizer = ImageTokenizer.from_pretrained(fixture.name)
    images, expected, restored = fixture.load()
    tokens = tokenizer.encode(images)
    expected = expected.view_as(tokens)
    ties = 0
    if tokenizer.quantizer.name != "multi_scale" and (different := (tokens != expected).any(-1)).any():
        latent = tokenizer.encoder(images).movedim(1, -1)
        ours, theirs = ((latent - tokenizer.quantizer.decode(t))[different].norm(dim=-1) for t in (tokens, expected))
        ties = int(((ours - theirs).abs() <= 1e-5 * ours).sum())
    decoded = tokenizer.decode_latent(tokenizer.quantizer.decode(tokens).movedim(-1, 1))
    return {
        "family": fixture.family,
        "file": fixture.file.partition("?")[0],
        "tokens": tokens.numel(),
        "equal": int((tokens == expected).sum()),
        "ties": ties,
        "image_difference": float((decoded - restored).abs().max() / restored.abs().max()),
    }


def speed(family: str, seconds: float = 5.0) -> dict:
    """Images a second of one core at the published size."""
    torch.set_num_threads(1)
    model, options = SIZES[family]
    config = options if isinstance(options, TokenizerConfig) else PublishedConfig(family, options)
    tokenizer = ImageTokenizer(config).eval()
    for weight in tokenizer.parameters():
        torch.nn.init.normal_(weight, 0, 0.02)
    size = tokenizer.size or 256
    images = torch.rand(1, 3, size, size) * 2 - 1
    tokenizer.decode(tokenizer.encode(images))
    start, done = time.process_time(), 0
    while time.process_time() - start < seconds:
        tokenizer.decode(tokenizer.encode(images))
        done += 1
    return {
        "model": model,
        "parameters": sum(weight.numel() for weight in tokenizer.parameters()),
        "images_per_second": done / (time.process_time() - start),
        "size": size,
    }


def measure(output: str) -> None:
    rows = []
    for fixture in FIXTURES:
        rows.append(compare(fixture))
        print(rows[-1])
    speeds = {}
    for family in SIZES:
        speeds[family] = speed(family)
        print(family, speeds[family])
    whole = {"fixtures": rows, "speed": speeds, "environment": environment(torch.device("cpu"))}
    Path(output).write_text(json.dumps(whole, indent=1) + "\n")


def table(source: str, page: str) -> None:
    """Put the table into a page, between two comments."""
    measured = json.loads(Path(source).read_text())
    lines = [
        "| family | fixture | tokens equal | of the rest ties | worst difference of images | "
        "published size | images/s of one core |",
        "|---|---|---:|---:|---:|---|---:|",
    ]
    for row in measured["fixtures"]:
        speed = measured["speed"].get(row["family"])
        size = f"{speed['model']}: {speed['parameters'] / 1e6:.0f}M, {speed['size']} px" if speed else ""
        rate = f"{speed['images_per_second']:.2g}" if speed else ""
        lines.append(
            f"| `{row['family']}` | {row['file']} | {row['equal']} of {row['tokens']} | {row['ties']} | "
            f"{row['image_difference']:.1e} | {size} | {rate} |"
        )
    text = Path(page).read_text()
    start, end = "<!-- table -->\n", "<!-- end of table -->"
    filled = re.sub(f"{start}.*?{end}", lambda _: start + "\n".join(lines) + "\n" + end, text, flags=re.DOTALL)
    Path(page).write_text(filled)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("measure")
    verb.add_argument("-o", "--output", required=True)
    verb.set_defaults(run=measure)
    verb = verbs.add_parser("table")
    verb.add_argument("source")
    verb.add_argument("page")
    verb.set_defaults(run=table)
    arguments = vars(parser.parse_args())
    arguments.pop("run")(**arguments)
