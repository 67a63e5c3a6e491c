"""The README tells the truth: its Python runs, its commands exist."""

import re
from pathlib import Path

import pytest

from gsqtok.cli import COMMANDS

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_there_is_python_in_the_readme():
    assert len(BLOCKS) >= 2


def test_its_python_runs_from_top_to_bottom():
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
    assert namespace["restored"].shape == (2, 3, 96, 128)


@pytest.mark.parametrize(
    "verb", sorted(set(re.findall(r"gsqtok (\w+)", README.read_text())) & {c.split()[0] for c in COMMANDS})
)
def test_its_commands_exist(verb, capsys):
    from gsqtok.cli import main

    assert main([verb, "--help"]) == 0
    assert verb in capsys.readouterr().out


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README.read_text()))
def test_its_links_lead_somewhere(link):
    assert (README.parent / link).exists()
