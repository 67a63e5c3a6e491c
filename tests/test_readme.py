"""The README as a face: its Python does what it says, its links lead somewhere, its tables are those on record."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_its_python_runs_from_top_to_bottom():
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
    assert namespace["restored"].shape == (2, 3, 96, 128)
    assert namespace["indices"].shape == (2, 8, 8, 4)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)[)#]", TEXT))))
def test_its_links_lead_somewhere(link):
    assert (README.parent / link).exists()


def test_six_images_by_every_tokenizer_come_first():
    start = TEXT[: TEXT.index("gsqtok turns")]
    (shown,) = re.findall(r"!\[Six images.*\]\((.*)\)", start)
    width, height = Image.open(README.parent / shown).size
    columns = len(("original", "embedded", "f8", "f16", "f16 sharp", "WebP"))
    assert (width, height // 256) == (256 * columns, 6)  # and a strip of titles
    assert "CC BY 4.0" in start


def test_its_tables_are_those_of_the_record():
    record = json.loads((README.parent / "docs" / "quality.json").read_text())
    embedded = record["imagenet-sample-256/embedded"]["metrics"]["psnr"]
    assert f"| inside the package | 6.0M | 1.00 | {embedded:.2f} |" in TEXT
