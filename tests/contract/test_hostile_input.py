"""Every command keeps the rule of tests/hostile.py with whatever a file holds: fifty inputs of each kind."""

import json
import os
import random
import shutil

import hostile
import pytest

from gsqtok.cli import main
from gsqtok.training import recipes

CASES = int(os.environ.get("GSQTOK_FUZZ", "50"))  # of each kind; more to look for what nobody has found yet


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A tokenizer, images, their tokens in a file and as a data set, and results, all as they should be."""
    import torch

    from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig

    folder = tmp_path_factory.mktemp("good")
    config = TokenizerConfig(
        latent_dim=8,
        channels=32,
        multipliers=(1, 1),
        encoder_blocks=1,
        decoder_blocks=1,
        encoder_middle_blocks=0,
        decoder_middle_blocks=0,
        quantizer={"name": "gsq", "groups": 2, "codebook_size": 300},
    )
    torch.manual_seed(0)
    ImageTokenizer(config).save_pretrained(folder / "model")
    (folder / "images").mkdir()
    for number in range(4):
        (folder / f"images/{number}.png").write_bytes(_png(number))
    assert main(["encode", str(folder / "model"), str(folder / "images"), "-o", str(folder / "tokens.npz")]) == 0
    tokenize = ["tokenize", str(folder / "model"), str(folder / "images"), "--workers", "0", "--shard-size", "2"]
    assert main([*tokenize, "--size", "8", "-o", str(folder / "tokens")]) == 0
    evaluate = ["evaluate", str(folder / "model"), str(folder / "images"), "-o", str(folder / "result.json")]
    assert main(evaluate) == 0
    return folder


def _png(number):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.frombytes("RGB", (8, 8), random.Random(number).randbytes(192)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def rule(tmp_path, monkeypatch):
    monkeypatch.setenv("GSQTOK_CACHE", str(tmp_path / "out/cache"))
    monkeypatch.chdir(tmp_path)
    return hostile.Rule(tmp_path)


def cases(kind, folder):
    """A generator of random numbers and an empty folder for each case."""
    for number in range(CASES):
        shutil.rmtree(folder / "in", ignore_errors=True)
        shutil.rmtree(folder / "out", ignore_errors=True)
        (folder / "in").mkdir()
        yield random.Random(f"{kind} {number}"), folder / "in"


def check(rule):
    if rule.broken:
        pytest.fail("\n".join([f"{len(rule.broken)} broken", *rule.broken]), pytrace=False)


def test_images(rule, tmp_path, good):
    """Many files in a few folders: one bad file must not spoil the others."""
    for round_ in range(max(1, CASES // 50)):
        shutil.rmtree(tmp_path / "in", ignore_errors=True)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "in").mkdir()
        rng = random.Random(f"images {round_}")
        for number in range(50):
            name = (
                rng.choice(hostile.NAMES) if rng.random() < 0.5 else f"{number}{rng.choice(('.png', '.jpg', '.tif'))}"
            )
            path = tmp_path / "in" / name
            if not path.exists():
                path.write_bytes(hostile.image(rng))
        (tmp_path / "in/good.png").write_bytes(_png(1))
        os.symlink("/dev/zero", tmp_path / "in/zero.png")
        os.mkfifo(tmp_path / "in/pipe.png")
        model, out = good / "model", tmp_path / "out"
        rule.run("encode", model, "in", "-o", out / "t.npz")
        rule.run("decode", model, out / "t.npz", "-o", out / "decoded")
        rule.run("reconstruct", model, "in", "-o", out / "images")
        rule.run("tokenize", model, "in", "-o", out / "tokens", "--size", "8", "--workers", "0")
        rule.run("tokens", "verify", model, out / "tokens", "-o", out / "sample")
        rule.run("evaluate", model, "in", "--size", "16", "--crop", "center", "-o", out / "r.json")
        train = ["train", "smoke", "--data.train", "in", "--output", out / "run", "--steps", "2", "--data.size", "16"]
        rule.run(*train, "--trackers", "[]", "--batch_size", "4", "--model.multipliers", "[1, 1]")
    check(rule)
    assert rule.errors == []


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_archives_of_images(rule, tmp_path, good, kind):
    for rng, folder in cases(kind, tmp_path):
        path = getattr(hostile, kind)(rng, folder)
        command = rng.choice(("encode", "reconstruct", "tokenize", "tokenize"))
        output = tmp_path / ("out/t.npz" if command == "encode" else "out/o")
        more = ["--size", "8", "--workers", "0", "--columns", "label", "caption"] if command == "tokenize" else []
        rule.run(command, good / "model", path, "-o", output, *more)
    check(rule)
    assert {0, 1} == set(rule.statuses)


def write(path, text):
    if isinstance(text, bytes):
        path.write_bytes(text)
    else:
        path.write_text(text, "utf-8", "surrogatepass")


def test_configurations_of_tokenizers(rule, tmp_path, good):
    values = json.loads((good / "model/config.json").read_text())
    weights = (good / "model/model.safetensors").read_bytes()
    for rng, folder in cases("config", tmp_path):
        damaged = rng.random() < 0.3
        (folder / "model.safetensors").write_bytes(hostile.mutated(rng, weights) if damaged else weights)
        write(folder / "config.json", json.dumps(values) if damaged else hostile.json_text(rng, values))
        rule.run("info", folder)
    check(rule)
    assert 1 in rule.statuses


def test_recipes(rule, tmp_path, good):
    texts = [recipes.find(name).read_text() for name in ("smoke", "smoke-gan")]
    for rng, folder in cases("recipe", tmp_path):
        write(folder / "r.yaml", hostile.yaml_text(rng, rng.choice(texts), tmp_path / "canary"))
        rule.run(
            "recipes", "validate", folder / "r.yaml", "--data.train", good / "images", "--output", tmp_path / "out"
        )
    check(rule)
    assert set(rule.statuses) <= {0, 1, 2}


def test_results_of_evaluations(rule, tmp_path, good):
    values = json.loads((good / "result.json").read_text())
    for rng, folder in cases("result", tmp_path):
        write(folder / "r.json", hostile.json_text(rng, values))
        rule.run("compare", good / "result.json", folder / "r.json", *(["--markdown"] * (rng.random() < 0.5)))
    check(rule)
    assert {0, 1} == set(rule.statuses)


def test_files_of_tokens(rule, tmp_path, good):
    for rng, folder in cases("npz", tmp_path):
        path = hostile.npz(rng, good / "tokens.npz", folder / "t.npz", tmp_path / "canary")
        rule.run("info", path)
        rule.run("decode", good / "model", path, "-o", tmp_path / "out")
    check(rule)
    assert {0, 1} == set(rule.statuses)


def test_token_data_sets(rule, tmp_path, good):
    for rng, folder in cases("tokens", tmp_path):
        shutil.copytree(good / "tokens", folder / "t")
        files = sorted(file for file in (folder / "t").rglob("*.*") if file.is_file() and file.name[0] != ".")
        file = rng.choice(files)
        if file.suffix == ".json" and rng.random() < 0.8:
            write(file, hostile.json_text(rng, json.loads(file.read_text())))
        elif rng.random() < 0.1:
            file.unlink()
        else:
            file.write_bytes(hostile.mutated(rng, file.read_bytes()))
        shutil.copytree(folder / "t", tmp_path / "out/again")
        again = ["tokenize", good / "model", good / "images", "--workers", "0", "--shard-size", "2", "--size", "8"]
        commands = [
            ["tokens", "info", folder / "t"],
            ["tokens", "verify", good / "model", folder / "t", "-o", tmp_path / "out/sample"],
            ["tokens", "merge", folder / "t", "-o", tmp_path / "out/merged"],
            ["tokens", "split", folder / "t", "0.5", "-o", tmp_path / "out/a", tmp_path / "out/b"],
            [*again, "-o", tmp_path / "out/again"],
        ]
        for command in rng.sample(commands, 2):
            rule.run(*command)
    check(rule)
    assert {0, 1} == set(rule.statuses)
