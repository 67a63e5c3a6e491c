"""gsqtok compress and decompress, as a user meets them."""

import pytest
from PIL import Image, ImageChops

from gsqtok.cli import main
from gsqtok.generation.container import CompressedFile
from gsqtok.io import image_paths

pytest.importorskip("constriction")


@pytest.fixture
def model(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for number, (name, size) in enumerate({"a.png": (20, 30), "b.png": (16, 16), "below/c.png": (5, 3)}.items()):
        Image.radial_gradient("L").resize(size).rotate(90 * number).convert("RGB").save(folder / name)
    return folder


def run(capsys, *words):
    status = main([*map(str, words)])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_decompressed_images_are_those_that_encode_and_decode_give(model, images, tmp_path, capsys):
    file = tmp_path / "images.gsq"
    status, out, _ = run(capsys, "compress", model, images, "-o", file)
    assert status == 0
    assert f"{file.stat().st_size:,} bytes" in out
    assert run(capsys, "decompress", model, file, "-o", tmp_path / "out")[0] == 0
    assert run(capsys, "encode", model, images, "-o", tmp_path / "tokens.npz")[0] == 0
    assert run(capsys, "decode", model, tmp_path / "tokens.npz", "-o", tmp_path / "expected")[0] == 0
    for name in ("a.png", "b.png", "below/c.png"):
        ours, expected = Image.open(tmp_path / "out" / name), Image.open(tmp_path / "expected" / name)
        assert ours.size == expected.size == Image.open(images / name).size
        assert ImageChops.difference(ours, expected).getbbox() is None


def test_a_damaged_image_is_named_and_the_others_are_written(model, images, tmp_path, capsys):
    file = tmp_path / "images.gsq"
    run(capsys, "compress", model, images, "-o", file, "--frequencies", "adaptive")
    compressed = CompressedFile(file)
    lost = compressed.header.names[1]
    data = bytearray(file.read_bytes())
    data[int(compressed._starts[1])] ^= 0xFF
    file.write_bytes(data)
    status, out, _ = run(capsys, "decompress", model, file, "-o", tmp_path / "out")
    assert status == 1
    assert f"{lost}: lost, its bytes are not as they were written" in out
    written = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.png")}
    expected = image_paths(".", compressed.header.names)
    assert written == {path for name, path in expected.items() if name != lost}


def test_one_line_for_what_cannot_be_done(model, images, tmp_path, capsys):
    file = tmp_path / "images.gsq"
    run(capsys, "compress", model, images, "-o", file)
    cases = {
        ("decompress", file, "-o", tmp_path / "out"): "was made by the tokenizer",
        ("decompress", model, images / "a.png", "-o", tmp_path / "out"): "is not a file written by gsqtok compress",
        ("decompress", model, file, "-o", tmp_path / "out", "--only", "z.png"): "there is no image 'z.png' among 3",
        ("decompress", model, file, "-o", tmp_path / "out", "--prior", tmp_path): "no prior in",
        ("compress", model, images, "-o", images): "must be a file",
    }
    for words, said in cases.items():
        status, _, err = run(capsys, *words)
        assert status == 1
        assert said in err
        assert len(err.strip().splitlines()) == 1


def test_evaluate_counts_the_bytes_of_files(model, images, tmp_path, capsys):
    status, out, _ = run(capsys, "evaluate", model, images, "--features", "none", "--perceptual", "--files", "adaptive")
    assert status == 0
    shown = float(next(line for line in out.splitlines() if "bits_per_pixel " in line).split("│")[2])
    total = 0
    for name in ("a.png", "b.png", "below/c.png"):
        run(capsys, "compress", model, images / name, "-o", tmp_path / "one.gsq", "--frequencies", "adaptive")
        total += (tmp_path / "one.gsq").stat().st_size
    assert shown == pytest.approx(8 * total / (20 * 30 + 16 * 16 + 5 * 3), rel=0.1)  # of which names are a few bytes
    assert run(capsys, "evaluate", "codec:jpeg@1", images, "--features", "none", "--files", "static")[0] == 1
