"""The verbs, run in this process on small images with a tiny tokenizer."""

import errno
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gsqtok.cli import COMMANDS, main
from gsqtok.quantizers import build_quantizer
from gsqtok.tokenizer import ImageTokenizer

SIZES = {"a.png": (33, 40), "sub/ünï [x].png": (16, 17), "sub/b.jpg": (8, 64)}  # width, height


@pytest.fixture
def model(tmp_path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def test_encode_then_decode_keeps_names_and_sizes(model, images, tmp_path, capsys):
    tokens = tmp_path / "tokens.npz"
    assert main(["encode", model, str(images), "-o", str(tokens)]) == 0
    assert "3 images" in capsys.readouterr().out
    assert main(["decode", model, str(tokens), "-o", str(tmp_path / "out")]) == 0
    written = {str(p.relative_to(tmp_path / "out")): Image.open(p).size for p in (tmp_path / "out").rglob("*.png")}
    assert written == {"a.png": (33, 40), "sub/ünï [x].png": (16, 17), "sub/b.png": (8, 64)}
    tokenizer = ImageTokenizer.from_pretrained(model)
    factor = tokenizer.factor
    assert np.load(tokens)["a.png"].shape == (-(-40 // factor), -(-33 // factor), 2)


def test_tiles_write_what_the_whole_writes(model, images, tmp_path):
    written = []
    for name, options in (("whole", []), ("tiled", ["--tile", "16"])):
        folder = tmp_path / name
        assert main(["encode", model, str(images), "-o", str(folder / "t.npz"), *options]) == 0
        assert main(["decode", model, str(folder / "t.npz"), "-o", str(folder / "decoded"), *options]) == 0
        assert main(["reconstruct", model, str(images), "-o", str(folder / "there-and-back"), *options]) == 0
        tokens = np.load(folder / "t.npz")
        files = [np.asarray(Image.open(file), int) for file in sorted(folder.rglob("*.png"))]
        written.append(({key: tokens[key] for key in ("a.png", "sub/b.jpg")}, files))
    (tokens, whole), (tiled_tokens, tiled) = written
    assert all((tokens[key] == tiled_tokens[key]).all() for key in tokens)
    assert len(whole) == len(tiled) == 6
    assert max(np.abs(a - b).max() for a, b in zip(whole, tiled, strict=True)) <= 1  # rounding


def test_a_broken_image_is_counted_and_named(model, images, tmp_path, capsys):
    whole = (images / "a.png").read_bytes()
    (images / "broken.png").write_bytes(whole[: len(whole) // 2])
    assert main(["encode", model, str(images), "-o", str(tmp_path / "t.npz")]) == 0
    out = capsys.readouterr().out
    assert "3 images" in out
    assert "1 image could not be read" in out
    assert "broken.png" in out


def test_reconstruct_prints_a_row_for_each_image(model, images, tmp_path, capsys):
    assert main(["reconstruct", model, str(images), "-o", str(tmp_path / "r"), "--side-by-side"]) == 0
    out = capsys.readouterr().out
    assert "a.png" in out
    assert "ünï [x].png" in out  # not taken for markup
    assert "mean of 3" in out
    assert len(list((tmp_path / "r").rglob("*.png"))) == 3


def test_evaluate_writes_its_figures(model, images, tmp_path, capsys):
    target = tmp_path / "figures.json"
    assert main(["evaluate", model, str(images), "--size", "16", "--crop", "center", "-o", str(target)]) == 0
    assert "psnr" in capsys.readouterr().out
    record = json.loads(target.read_text())
    assert record["data"]["images"] == 3
    assert record["model"]["fingerprint"] == ImageTokenizer.from_pretrained(model).fingerprint()


def test_a_codec_is_evaluated_and_compared(model, images, tmp_path, capsys):
    ours, jpeg = tmp_path / "ours.json", tmp_path / "jpeg.json"
    common = [str(images), "--features", "none", "--perceptual"]
    assert main(["evaluate", model, *common, "-o", str(ours)]) == 0
    assert main(["evaluate", "codec:jpeg@0.5", *common, "-o", str(jpeg), "--images-as", str(ours)]) == 0
    assert "at most 0.5 bits/px; 3 files are larger at the lowest quality" in capsys.readouterr().out  # tiny images
    shown, theirs = (json.loads(path.read_text())["images"] for path in (ours, jpeg))
    assert [(p["key"], p["rank"]) for p in theirs] == [(p["key"], p["rank"]) for p in shown]
    assert {p["ranked_by"] for p in theirs} == {model}
    assert main(["compare", str(ours), str(jpeg)]) == 0
    out = capsys.readouterr()
    assert "bits/px" in out.out
    assert "warning" not in out.err
    assert main(["compare", str(ours), str(jpeg), "--markdown", "-o", str(tmp_path / "report")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | bits/px | ")
    metrics = json.loads(jpeg.read_text())["metrics"]
    assert lines[3].startswith(f"| jpeg | {metrics['bits_per_pixel']:.3f} |")
    assert f" {metrics['psnr']:.2f} " in lines[3]
    assert (tmp_path / "report" / "report.html").is_file()
    assert main(["leaderboard", str(ours), str(jpeg), "-o", str(tmp_path / "board")]) == 0
    assert "| jpeg |" in (tmp_path / "board" / "leaderboard.md").read_text()
    assert {"leaderboard.html", "leaderboard.csv"} <= {path.name for path in (tmp_path / "board").iterdir()}
    assert main(["evaluate", model, *common, "--size", "16", "--crop", "center", "-o", str(ours)]) == 0
    assert main(["compare", str(ours), str(jpeg)]) == 0
    assert "warning: jpeg and" in (err := capsys.readouterr().err)
    assert "size: none against 16" in err


def test_a_wide_comparison_is_broken_into_tables():
    from rich.console import Console

    from gsqtok.cli.compare import tables

    titles = ["model", "bits/px", *(f"figure {n}" for n in range(12))]
    rows = [["ours", "1.000", *(f"{n}.5678" for n in range(12))], ["theirs", "0.500", *"abcdefghijkl"]]
    console = Console(width=60, record=True, file=io.StringIO())
    made = tables(titles, rows, 60)
    for table in made:
        console.print(table)
    text = console.export_text()
    assert len(made) == 4
    assert text.count("0.500") == text.count("bits/px") == 4
    assert all(text.count(word) == 1 for word in [*titles[4:], "7.5678"])
    assert "…" not in text
    assert len(tables(titles, rows, 1000)) == 1


def test_info_of_a_tokenizer_and_of_tokens(model, images, tmp_path, capsys):
    assert main(["info", model]) == 0
    assert ImageTokenizer.from_pretrained(model).fingerprint() in capsys.readouterr().out
    main(["encode", model, str(images), "-o", str(tmp_path / "t.npz")])
    capsys.readouterr()
    assert main(["info", str(tmp_path / "t.npz")]) == 0
    assert "images" in capsys.readouterr().out


def test_demo_writes_everything_it_says(model, tmp_path, capsys):
    assert main(["demo", model, "-o", str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("astronaut.png", "PSNR", "SSIM", "bits/px"))
    assert len(list((tmp_path / "demo" / "reconstructions").glob("*.png"))) == 5
    assert (tmp_path / "demo" / "tokens.npz").is_file()
    assert Image.open(tmp_path / "demo" / "side_by_side.png").height > 1000


def test_recipes_are_listed_shown_and_copied(tmp_path, capsys):
    assert main(["recipes", "ls"]) == 0
    assert "small" in capsys.readouterr().out
    assert main(["recipes", "copy", "smoke", str(tmp_path / "my.yaml")]) == 0
    capsys.readouterr()
    assert main(["recipes", "show", "smoke"]) == 0
    assert capsys.readouterr().out == (tmp_path / "my.yaml").read_text()
    assert main(["recipes", "copy", "smoke", str(tmp_path / "my.yaml")]) == 1  # never over another file


def error_of(capsys, *argv):
    assert main([str(a) for a in argv]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    last = [line for line in lines if line.startswith("gsqtok ")]
    assert len(last) == 1
    return last[0]


def test_one_line_says_what_is_wrong(model, images, tmp_path, capsys):
    out = tmp_path / "t.npz"
    assert "nowhere" in error_of(capsys, "encode", model, tmp_path / "nowhere", "-o", out)
    (tmp_path / "empty").mkdir()
    assert "empty" in error_of(capsys, "encode", model, tmp_path / "empty", "-o", out)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "note.txt").write_text("hello")
    assert "no image" in error_of(capsys, "encode", model, tmp_path / "texts", "-o", out)
    assert "not a saved tokenizer" in error_of(capsys, "encode", tmp_path / "texts", images, "-o", out)
    assert "no such folder" in error_of(capsys, "info", "nosuch")
    assert ".npz" in error_of(capsys, "encode", model, images, "-o", tmp_path / "t.bin")
    assert "--size" in error_of(capsys, "encode", model, images, "-o", out, "--crop", "center")
    assert "tile must be an even number" in error_of(capsys, "encode", model, images, "-o", out, "--tile", 7)
    assert "codec:webp@0.5" in error_of(capsys, "evaluate", "codec:gif@1", images)
    assert "--precision" in error_of(capsys, "evaluate", "codec:jpeg@1", images, "--precision", "float16")
    assert "--images-as" in error_of(capsys, "evaluate", model, images, "--images-as", "a.json")
    assert "nowhere.json" in error_of(capsys, "compare", "nowhere.json")
    assert "device" in error_of(capsys, "encode", model, images, "-o", out, "--device", "nonsense")
    assert not out.exists()


def test_tokens_of_another_tokenizer_are_refused(model, images, tmp_path, tiny_config, capsys):
    main(["encode", model, str(images), "-o", str(tmp_path / "t.npz")])
    other = ImageTokenizer(tiny_config)
    other.save_pretrained(tmp_path / "other")
    capsys.readouterr()
    message = error_of(capsys, "decode", tmp_path / "other", tmp_path / "t.npz", "-o", tmp_path / "out")
    assert other.tokens_fingerprint()[:12] in message
    assert ImageTokenizer.from_pretrained(model).tokens_fingerprint()[:12] in message


def test_an_unknown_verb_suggests_one(capsys):
    assert main(["encod"]) == 2
    assert "encode" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_defaults(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert "example" in out
    assert f"gsqtok {command}" in out.split("example")[1]
    assert "default: null" not in out
    defaults = {"train": "(default: 100000)", "encode": "(default: 8)", "plan": "(default: 16)"}
    assert defaults.get(command, "") in out


@pytest.mark.parametrize("code", ["import gsqtok", "from gsqtok.cli import main; main(['--help'])"])
def test_torch_is_not_loaded_before_it_is_needed(code):
    program = f"import sys; {code}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_plan_lists_settings_that_spend_the_bits(capsys):
    assert main(["plan", "--bits-per-pixel", "0.5625", "--factor", "8"]) == 0
    out = capsys.readouterr().out
    assert all(method in out for method in ("gsq", "fsq", "lfq", "bsq", "rsq"))
    assert main(["plan", "--bits-per-pixel", "0.5625", "--factor", "8", "--methods", "gsq", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)
    assert {s["method"] for s in settings} == {"gsq"}
    assert [s["bits"] for s in settings] == pytest.approx([36] * len(settings), rel=0.02)
    assert build_quantizer("gsq", **settings[0]["options"]).bits == settings[0]["bits"]


def test_plan_without_a_setting_names_the_nearest(capsys):
    assert main(["plan", "--bits-per-pixel", "0.5625", "--factor", "8", "--methods", "leech"]) == 1
    assert "the nearest has 0.5495 bits per pixel" in capsys.readouterr().err


def test_dashes_and_underscores_are_the_same(capsys):
    written = []
    for name in ("--bits-per-pixel", "--bits_per_pixel"):
        assert main(["plan", f"{name}=0.5625", "--factor", "8", "--methods", "gsq"]) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["encode", "a", "-o", "t.npz", "--batch-siz", "3"], "did you mean '--batch-size'?"),
        (["train", "smoke", "--optimizer.learningrate", "1"], "did you mean '--optimizer.learning_rate'?"),
        (["reconstruct", "a", "-o", "b", "--crop", "centre"], "did you mean 'center'?"),
        (["evaluate", "a", "--precision", "float"], "is none of float32, bfloat16, float16"),
        (["encode", "a", "-o", "t.npz", "--size", "many"], "size: 'many' is no int"),
        (["encode", "a"], "output"),
        (["tokens", "verfy", "x"], "did you mean 'tokens verify'?"),
        (["tokens"], "tokens merge"),
    ],
)
def test_wrong_usage_ends_with_status_2_and_says_what_is_meant(argv, said, capsys):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert said in out + err
    assert len(err.strip().splitlines()) <= 1


def test_no_command_writes_over_its_source(model, images, tmp_path, capsys):
    before = {path: path.read_bytes() for path in images.rglob("*") if path.is_file()}
    inside = images / "out"
    for target in (images, inside, f"{images}/../images"):
        assert "choose a folder outside" in error_of(capsys, "reconstruct", model, images, "-o", target)
        assert "choose a folder outside" in error_of(capsys, "tokenize", model, images, "-o", target)
    assert not inside.exists()
    image = images / "a.png"
    assert "is the source itself" in error_of(capsys, "evaluate", model, image, "-o", image)
    assert {path: path.read_bytes() for path in images.rglob("*") if path.is_file()} == before


def test_outputs_are_checked_before_the_work(model, images, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "is a folder" in error_of(capsys, "evaluate", model, "nowhere/", "-o", tmp_path)
    assert "is a file" in error_of(capsys, "reconstruct", model, "nowhere/", "-o", tmp_path / "file")
    assert "file" in error_of(capsys, "encode", model, "nowhere/", "-o", tmp_path / "file" / "t.npz")
    assert "is a file" in error_of(capsys, "convert", "nowhere.pt", "-o", tmp_path / "file")


def test_a_full_disk_names_the_path(monkeypatch, images, model, tmp_path, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "t.npz"))

    monkeypatch.setattr("gsqtok.tokens.TokenArchiveWriter", full)
    line = error_of(capsys, "encode", model, images, "-o", tmp_path / "t.npz")
    assert f"the disk of {tmp_path / 't.npz'} is full" in line
    assert "make room" in line


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_options(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("--side-by-side", "--data.train", "verify", "copy"):
        assert word in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
