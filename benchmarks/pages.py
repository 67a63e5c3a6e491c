"""Make the documentation's pages from what was measured, so that no figure in them is typed by hand.

    python benchmarks/pages.py            # writes them
    python benchmarks/pages.py --check    # status 1, and their names, where a page is not what it should be

docs/performance.md     all of it: the files docs/performance/*.json in the order of their names
any other page          the tables between `<!-- quality: ... -->` or `<!-- rates: ... -->` and `<!-- end -->` from
                        docs/quality.json (`quality.py`), between `<!-- table -->` and `<!-- end of table -->` from
                        docs/published.json (`published.py`), between `<!-- heads -->` and `<!-- end of heads -->` from
                        docs/heads.json (docs/plots/generation.sh)
model cards             the metadata in front and the parts between `<!-- card: ... -->` and `<!-- end of card -->`,
                        from docs/quality.json, and from config.json and training.json beside the card

A file of docs/performance is a section: `title` and `level` of its heading, and `text`, a list of paragraphs and of
tables in which cells are text. One that a benchmark wrote (`--json`) has `columns`, `rows` and `measured`, which says
how; `after` is what follows its table. Sections of before there were such files hold their figures as they were written
then; their `measured` has the commit in which they were.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cards

ROOT = Path(__file__).parents[1]
SECTIONS = ROOT / "docs" / "performance"
HEAD = """<!-- Made by `python benchmarks/pages.py` from docs/performance/*.json: change those, not this page. -->
# Speed
"""


def performance(folder: Path = SECTIONS) -> str:
    """The page of that name."""
    return HEAD + "".join(section(json.loads(path.read_text())) for path in sorted(folder.glob("*.json")))


def section(content: dict[str, Any]) -> str:
    """A heading and what is below it."""
    parts = [f"{'#' * content['level']} {content['title']}"]
    parts += [part if isinstance(part, str) else table(part["columns"], part["rows"]) for part in content["text"]]
    if "rows" in content:
        columns = content["columns"]
        heads = [("" if form else "<") + heading for heading, form in columns.values()]
        rows = [[cell(row.get(key), form) for key, (_, form) in columns.items()] for row in content["rows"]]
        parts.append(table(heads, rows))
    parts += content.get("after", [])
    parts.append(source(content.get("measured", {})))
    return "".join(f"\n{wrapped(part)}\n" for part in parts if part)


def source(measured: dict[str, Any]) -> str:
    """How it was measured, in small print."""
    libraries = {"torch": measured.get("torch"), **measured.get("versions", {})}
    facts = [
        measured.get("device"),
        ", ".join(f"{name} {version}" for name, version in libraries.items() if version),
        (measured.get("date") or "")[:10],
        f"load {measured['load']}" if "load" in measured else "",
        f"commit {measured['commit']}" if measured.get("commit") else "",
        f"figures as written in {measured['written_in']}" if measured.get("written_in") else "",
        f"`{measured['command']}`" if measured.get("command") else "",
    ]
    said = ", ".join(fact for fact in facts if fact)
    return f"Measured: {said}." if said else ""


def cell(value: Any, form: str) -> str:
    """A value of a row; None and NaN are dashes."""
    if value is None or value != value:
        return "-"
    return value if isinstance(value, str) else format(value, form)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Rows as Markdown; a heading after `<` is of a column of words, others are of numbers."""
    heads = [head.removeprefix("<") for head in columns]
    ruler = ["---" if head.startswith("<") else "--:" for head in columns]
    lines = ["| " + " | ".join(line) + " |" for line in (heads, *rows)]
    return "\n".join([lines[0], "|" + "|".join(ruler) + "|", *lines[1:]])


def wrapped(part: str) -> str:
    if part.startswith(("|", "#")):
        return part
    return textwrap.fill(part, 120, break_long_words=False, break_on_hyphens=False)


# Tables within other pages

QUALITY = {  # what is shown of docs/quality.json
    "bits_per_pixel": ("bits/px", ".2f"),
    "psnr": ("PSNR, dB", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "ms_ssim": ("MS-SSIM", ".3f"),
    "st_lpips": ("ST-LPIPS", ".3f"),
    "frechet_efficientnet_lite1": ("FD, Lite 1", ".0f"),
    "frechet_mobilenetv2": ("FD, Mobile", ".1f"),
}
MODELS = {  # in the order of the tables
    "embedded": "inside the package",
    "f8": "`pretrained/f8`",
    "f8-nested": "`pretrained/f8-nested`",
    "f8-nested@3": "`pretrained/f8-nested`, 3 groups",
    "f8-nested@2": "`pretrained/f8-nested`, 2 groups",
    "f8-nested@1": "`pretrained/f8-nested`, 1 group",
    "f16": "`pretrained/f16`",
    "f16?decoder=sharp": "`pretrained/f16?decoder=sharp`",
}
CODECS = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF"}


def measured() -> cards.Record:
    return json.loads((ROOT / "docs/quality.json").read_text())


def quality(data: str, distances: str, rate: float) -> str:
    """Tokenizers and codecs at about one rate: metrics on ``data``, Fréchet distances on ``distances``."""
    record = measured()
    titles = MODELS | {f"codec:{codec}@{rate}": title for codec, title in CODECS.items()}
    bits = {n: record[f"{data}/{n}"]["metrics"]["bits_per_pixel"] for n in titles if f"{data}/{n}" in record}
    return _rows(record, data, distances, {name: titles[name] for name in bits if 0.8 < bits[name] / rate < 1.25})


def rates(data: str, distances: str, model: str) -> str:
    """Likewise a tokenizer with nested groups, at all its rates."""
    titles = {name: title for name, title in MODELS.items() if name.partition("@")[0] == model}
    return _rows(measured(), data, distances, titles)


def _rows(record: cards.Record, data: str, distances: str, titles: dict[str, str]) -> str:
    """A line for each of these that both were measured with."""
    rows = []
    for name, title in titles.items():
        line, far = record.get(f"{data}/{name}"), record.get(f"{distances}/{name}")
        if line is None or far is None:
            continue
        metrics = line["metrics"] | {k: v for k, v in far["metrics"].items() if k.startswith("frechet")}
        size = line["model"].get("parameters")
        rows.append([title, f"{size / 1e6:.1f}M" if size else ""])
        rows[-1] += [cell(metrics.get(key), form) for key, (_, form) in QUALITY.items()]
    return table(["<", "parameters", *(heading for heading, _ in QUALITY.values())], rows)


def published() -> str:
    """Published tokenizers against the official code."""
    measured = json.loads((ROOT / "docs/published.json").read_text())
    rows = []
    for row in measured["rows"]:
        speed = measured["measured"]["speed"].get(row["family"])
        rows.append(
            [
                f"`{row['family']}`",
                row["file"],
                f"{row['equal']} of {row['tokens']}",
                str(row["ties"]),
                f"{row['image_difference']:.1e}",
                f"{speed['model']}: {speed['parameters'] / 1e6:.0f}M, {speed['size']} px" if speed else "",
                f"{speed['images_per_second']:.2g}" if speed else "",
            ]
        )
    heads = ["<family", "<fixture", "tokens equal", "of the rest ties", "worst difference of images"]
    return table([*heads, "<published size", "images/s of one core"], rows)


def heads() -> str:
    """The heads of a prior at equal parameters and steps."""
    rows = []
    for row in json.loads((ROOT / "docs/heads.json").read_text())["rows"]:
        rows.append(
            [
                f"`{row['head']}`",
                f"{row['bits_per_token']:.2f}",
                f"{row['bits_per_pixel']:.3f}",
                ", ".join(f"{bits:.2f}" for bits in row["bits_by_group"]),
                f"{row['frechet_distance_tf_efficientnet_lite1']:.0f}",
                f"{row['samples_per_second']:.0f}",
            ]
        )
    return table(["<head", "bits/token", "bits/px", "<group 1, 2, 3, 4", "FD of samples", "samples a second"], rows)


MARKS = ("quality: ", "rates: ", "table -->", "heads -->")


def filled(text: str) -> str:
    """A page with its tables made anew."""
    text = _between(text, "quality: (.*?) (.*?) (.*?)", "end", lambda *where: quality(*where[:2], float(where[2])))
    text = _between(text, "rates: (.*?) (.*?) (.*?)", "end", rates)
    text = _between(text, "table", "end of table", published)
    return _between(text, "heads", "end of heads", heads)


def _between(text: str, mark: str, end: str, make: Callable[..., str]) -> str:
    """The text with what is between these marks made anew; ``make`` is given what the groups of the first one hold."""

    def anew(found: re.Match[str]) -> str:
        first, *said, last = found.groups()
        return f"{first}{make(*said)}\n{last}"

    return re.sub(rf"(<!-- {mark} -->\n).*?(<!-- {end} -->)", anew, text, flags=re.DOTALL)


METADATA = r"\A---\n(.*?\n)?---\n"


def card(place: str, text: str) -> str:
    """A model card with its metadata and parts made anew."""
    folder, names, record = ROOT / place, cards.CARDS[place], measured()
    parts = {
        "facts": lambda: cards.facts(folder, names, record, table),
        "metrics": lambda: cards.metrics(names, record, quality),
        "rates": lambda: rates("imagenet-sample-256", "coco-256", names[0]),
        "training": lambda: cards.training(folder, table),
    }
    front = f"---\n{cards.metadata(place, record)}---\n"
    text = re.sub(METADATA, lambda _: front, text, flags=re.DOTALL)
    return _between(text, r"card: (\w+)", "end of card", lambda part: parts[part]())


def pages() -> Iterator[tuple[Path, str]]:
    """Every page that is made or filled, with its text."""
    yield SECTIONS.with_suffix(".md"), performance()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text()
        if path != SECTIONS.with_suffix(".md") and any(f"<!-- {mark}" in text for mark in MARKS):
            yield path, filled(text)
    for place in cards.CARDS:
        if (path := ROOT / place / "README.md").exists():  # a source distribution has no weights but the package's
            yield path, card(place, path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    changed = [(path, text) for path, text in pages() if path.read_text() != text]
    for path, text in changed:
        print(path.relative_to(ROOT))
        if not check:
            path.write_text(text)
    sys.exit(1 if check and changed else 0)


if __name__ == "__main__":
    main()
