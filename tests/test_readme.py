"""The README as a face: its Python does what it says, its links lead somewhere, its tables are those on record."""

import json
import re
from pathlib import Path

import pytest

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


def test_an_image_comes_first():
    assert TEXT.index("![") < TEXT.index("gsqtok turns")


def test_its_tables_are_those_of_the_record():
    record = json.loads((README.parent / "docs" / "quality.json").read_text())
    embedded = record["imagenet-sample-256/embedded"]["metrics"]["psnr"]
    assert f"| inside the package | 6.0M | 1.00 | {embedded:.2f} |" in TEXT
