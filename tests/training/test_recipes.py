"""What a recipe's file may hold, and how recipes build on each other."""

import pytest

from gsqtok.cli import main
from gsqtok.training import recipes


@pytest.fixture
def written(tmp_path):
    def write(text, name="mine.yaml"):
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


def test_a_base_comes_from_the_recipe_s_own_folder_or_the_package(written):
    written("base: smoke\nsteps: 7\nmodel: {channels: 64}\n", "one.yaml")
    values = recipes.load(written("base: one.yaml\nbatch_size: 4\n", "two.yaml"))
    smoke = recipes.load("smoke")
    assert values == smoke | {"steps": 7, "batch_size": 4, "model": smoke["model"] | {"channels": 64}}


def test_another_quantizer_takes_the_base_s_place(written):
    base = written("model: {quantizer: {name: gsq, groups: 4}}\n", "base.yaml")
    same = recipes.load(written("base: base.yaml\nmodel: {quantizer: {groups: 8}}\n"))
    assert same["model"]["quantizer"] == {"name": "gsq", "groups": 8}
    other = recipes.load(written("base: base.yaml\nmodel: {quantizer: {name: fsq, levels: [8]}}\n"))
    assert other["model"]["quantizer"] == {"name": "fsq", "levels": [8]}
    assert recipes.load(base)["model"]["quantizer"]["groups"] == 4


def test_a_section_that_is_null_leaves_the_base_s_out(written):
    written("steps: 7\nmodel: {channels: 64}\n", "one.yaml")
    written("base: one.yaml\nbatch_size: 4\n", "two.yaml")
    assert recipes.load(written("base: two.yaml\nmodel: null\n", "three.yaml")) == {"steps": 7, "batch_size": 4}
    assert recipes.load(written("base: three.yaml\nmodel: {latent_dim: 8}\n"))["model"] == {"latent_dim": 8}


def test_bases_in_a_circle(written):
    written("base: two.yaml\n", "one.yaml")
    with pytest.raises(ValueError, match=r"builds on itself"):
        recipes.load(written("base: one.yaml\n", "two.yaml"))


def test_a_home_folder_is_expanded(written, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    values = recipes.load(written("output: ~/runs\ndata: {train: [~/a, b]}\n"))
    assert values == {"output": "/home/somebody/runs", "data": {"train": ["/home/somebody/a", "b"]}}


def test_numbers_are_those_of_json(written):
    text = "a: 1e-4\nb: 12\nc: '0128'\nf: yes\ng: .5\nh: true\ni: 1_000\nj: null\n"
    expected = {"a": 1e-4, "b": 12, "c": "0128", "f": "yes", "g": 0.5, "h": True, "i": 1000}
    assert recipes.load(written(text)) == expected | {"j": None}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base:\tsmoke\nsteps: 30\n", "line 1"),
        ("steps: 30\nsteps: 40\n", "'steps' is there twice"),
        ("a: &a [1, 2]\nb: [*a, *a]\n", "aliases are not supported"),
        ("steps: [unclosed\n", "line"),
        ("", "it is empty"),
        ("- a\n- b\n", "it holds list"),
        ("just text\n", "it holds str"),
        ("steps: 1\n".encode("utf-16"), "not UTF-8"),
        ("base: [smoke]\n", "base must be the name of a recipe"),
        ("base: nosuch\n", "no recipe 'nosuch'"),
        ("1: 2\n", "the key 1 is no text"),
        ("a: !!python/object/apply:os.system [ls]\n", "not a recipe"),
        ("[" * 5000, "not a recipe"),
        ("data: null\n", "'data' must be a section"),
        ("model: 3\n", "'model' must be a section"),
        ("stepz: 3\n", "there is no 'stepz'; did you mean 'steps'?"),
        ("optimizer: {learningrate: 1}\n", "did you mean 'optimizer.learning_rate'?"),
        ("model: {quantiser: {name: gsq}}\n", "did you mean 'model.quantizer'?"),
        ("steps: many\n", "steps: 'many' is no int"),
        ("data: {size: 0128}\n", "0128 is a number in some versions of YAML"),
        ("data: {size: 2:08}\n", "2:08 is a number in some"),
    ],
)
def test_one_line_names_the_file_and_what_is_wrong(written, capsys, text, said):
    file = written(text)
    assert main(["train", file]) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert line.startswith("gsqtok train: error: ")
    assert "nosuch" in line or file in line
    assert "Traceback" not in line
