"""The documentation tells the truth: its Python runs, its commands are commands, its tables are complete."""

import contextlib
import importlib.util
import inspect
import itertools
import re
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gsqtok.cli import COMMANDS, function_of
from gsqtok.cli.parser import build, parse
from gsqtok.quantizers import list_quantizers, options_type

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("&&", "|", ">", ">>", ";")  # what ends a command
NOT_RUN = "Not run by the tests: "
FENCE = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```", flags=re.DOTALL | re.MULTILINE)


def named(pages):
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


def blocks(page, language):
    """(what follows the language, text) of each block."""
    found = FENCE.findall(page.read_text())
    return [(rest.strip(), textwrap.dedent(text)) for _, kind, rest, text in found if kind == language]


def python_to_run(page):
    for rest, text in blocks(page, "python"):
        if text.startswith("--8<--"):
            continue  # a file of examples/, which tests/examples runs
        if NOT_RUN in rest:
            assert re.fullmatch(rf'title="{NOT_RUN}it needs [\w ]+"', rest), f"say what it needs: {rest}"
        else:
            yield text


def commands(text):
    """The arguments of each gsqtok command in lines of shell, also behind torchrun, accelerate and source."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"<\((.*)\)", r"\1", line), comments=True)
        if "gsqtok" in words and words[0] in ("gsqtok", "torchrun", "accelerate", "source"):
            words = words[words.index("gsqtok") + 1 :]
            yield list(itertools.takewhile(lambda word: word not in SHELL, words))


def shown(page):
    return [words for _, text in blocks(page, "bash") for words in commands(text)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader is: some images, and a recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    for name in ("mine.yaml", "my-recipe.yaml"):
        (tmp_path / name).write_text("base: small\n")


@pytest.mark.parametrize("page", named(page for page in PAGES[1:] if any(python_to_run(page))))
def test_python_runs_from_top_to_bottom(page, folder):
    namespace = {}
    for block in python_to_run(page):
        exec(compile(block, str(page), "exec"), namespace)


def test_enough_of_it_runs():
    assert sum(len(list(python_to_run(page))) for page in PAGES) >= 12


@pytest.mark.parametrize("page", named(page for page in PAGES if shown(page)))
def test_commands_are_commands(page, folder, capsys):
    for words in shown(page):
        check(words, capsys)


def test_examples_of_the_help_are_commands(folder, capsys):
    for command in COMMANDS:
        examples = build(command, function_of(command), explain=False).epilog.partition("\n")[2]
        found = list(commands(examples))
        assert len(found) == len(examples.strip().splitlines()), examples
        for words in found:
            check(words, capsys)


def check(words, capsys):
    command = next((c for c in (" ".join(words[:2]), words[0]) if c in COMMANDS), None)
    assert command, f"no command: gsqtok {shlex.join(words)}"
    assert not any("..." in word for word in words), f"no command that runs: gsqtok {shlex.join(words)}"
    with contextlib.suppress(SystemExit):  # of the parser, which then has said why
        parse(command, function_of(command), words[len(command.split()) :])
    assert not capsys.readouterr().err


def test_no_command_is_shown_outside_a_block_that_is_checked():
    for page in PAGES:
        for kind in ("", "sh", "shell", "console"):
            assert not any(re.match(r"(\$ )?gsqtok ", text) for _, text in blocks(page, kind)), page


# Coming from vector-quantize-pytorch


def section_tables():
    """Names of the left column, and the rows, of each section of the page."""
    text = (ROOT / "docs" / "from-vector-quantize-pytorch.md").read_text()
    for section in text.split("\n## ")[1:]:
        title = section.splitlines()[0]
        yield title, dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, flags=re.MULTILINE))


TABLES = dict(section_tables())


def options_of(function):
    kinds = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return [kinds.get(parameter.kind, "") + parameter.name for parameter in parameters]


def test_every_class_of_vector_quantize_pytorch_has_a_table():
    theirs = pytest.importorskip("vector_quantize_pytorch")
    classes = {name for name, value in vars(theirs).items() if inspect.isclass(value)}
    assert set(TABLES) == classes | {"Calls of VectorQuantize"}


@pytest.mark.parametrize("title", TABLES)
def test_every_option_of_vector_quantize_pytorch_is_named(title):
    theirs = pytest.importorskip("vector_quantize_pytorch")
    function = theirs.VectorQuantize.forward if " " in title else getattr(theirs, title).__init__
    assert list(TABLES[title]) == options_of(function)


def test_the_names_here_exist():
    text = "\n".join(row for rows in TABLES.values() for row in rows.values())
    for option, method in re.findall(r"`(\w+)` of `(\w+)`", text):
        assert option in ("dim", *options_type(method).__dataclass_fields__), f"{option} of {method}"
    for method in re.findall(r"method `(\w+)`", text):
        assert method in list_quantizers()
    for option, value in re.findall(r'`(\w+)="(\w+)"`', text):
        taking = [m for m in list_quantizers() if option in options_type(m).__dataclass_fields__]
        assert any(value in str(options_type(m).__annotations__[option]) for m in taking), f"{option}={value}"


def test_the_page_agrees_with_what_unknown_options_are_answered():
    migration = pytest.importorskip("gsqtok.quantizers.migration")
    ours = {option for name in list_quantizers() for option in options_type(name).__dataclass_fields__}
    rows: dict[str, str] = {}
    for name, row in (pair for table in TABLES.values() for pair in table.items()):
        rows[name] = rows.get(name, "") + row
    compared = 0
    for name, answer in migration.OPTIONS.items():
        option = re.match(r"\w+", answer)[0]
        if option in ours and name in rows:
            assert option in rows[name], f"{name}: '{answer}' there, '{rows[name]}' on the page"
            compared += 1
    assert compared > 10


# The site


def hook(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_of_the_package_has_no_relative_links():
    pytest.importorskip("hatchling")
    readme = (ROOT / "README.md").read_text()
    relative = r"\]\((?!https?://)[^)]+\)"
    assert re.search(relative, readme)
    outside = hook("package_readme").outside
    assert not re.search(relative, outside(readme, ""))
    absolute = outside(readme, "https://example.org/gsqtok")
    assert not re.search(relative, absolute)
    assert "![Six images" in absolute
    assert "https://example.org/gsqtok/blob/main/docs/training.md" in absolute


@pytest.mark.slow
def test_the_site_builds(tmp_path, monkeypatch):
    """Strictly: a broken link, or a public name without an entry in the reference, fails it."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    build_site(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site")))
    commands_page = (tmp_path / "site" / "commands" / "evaluate" / "index.html").read_text()
    assert "--perceptual" in commands_page
    assert 'id="gsqtok.ImageTokenizer"' in (tmp_path / "site" / "api" / "index.html").read_text()
