"""TokBench against its rules written out: preparation, bins and means, with stand-ins for its recognisers."""

import importlib.util
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.text import char_error_rate

from gsqtok.cli import main
from gsqtok.evaluation import Result, evaluate_tokbench, tokbench
from gsqtok.evaluation.run import Reconstruction
from gsqtok.evaluation.tokbench import DocTRReader, binned, fitted, padded, restored, text_scores

MODEL = dict.fromkeys(("name", "fingerprint", "quantizer", "precision", "bits_per_position", "factor"))
MODEL |= {"bits_per_pixel": 0.5}


@pytest.fixture
def folder(tmp_path):
    """Two images with words, one with faces, in TokBench's layout."""
    rng = np.random.default_rng(0)
    for name, files in (("text_data/ic13", ["a.jpg", "b.png"]), ("face_data/wflw", ["c.png"])):
        (tmp_path / "images" / name).mkdir(parents=True)
        for file in files:
            coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            coarse.resize((300, 211), Image.Resampling.BICUBIC).save(tmp_path / "images" / name / file)
    words = [
        {"bbox": [10.6, 20, 60, 40], "rec": "one", "ratio": 0.02},
        {"bbox": [100, 50, 160, 90], "rec": "three", "ratio": 0.035},
    ]
    text = [
        {"file_name": "a.jpg", "height": 211, "width": 300, "annotations": words},
        {"file_name": "b.png", "height": 211, "width": 300, "annotations": [words[0] | {"rec": "two", "ratio": 0.9}]},
    ]
    points = [[50.0, 60], [80, 60], [65, 80], [55, 95], [78, 96]]
    faces = [{"kps": points, "ratio": ratio, "box": [], "gt": 0} for ratio in (0.15, 0.25, 0.4, 0.05)]
    meta = [{"image_name": "c.png", "img_height": 211, "img_width": 300, "faces": faces}]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "text_ic13.json").write_text(json.dumps(text))
    (tmp_path / "annotations" / "face_meta.json").write_text(json.dumps(meta))
    return tmp_path


def same(images):
    return Reconstruction(images, bits=torch.full((len(images),), 100.0))


def test_the_way_there_and_back(folder):
    """As resize_rec.py: the tokenizer that changes nothing."""
    file = folder / "images" / "text_data" / "ic13" / "a.jpg"
    original = Image.open(file).convert("RGB")
    square, box = padded(original, 256)
    assert (box[2] - box[0], box[3] - box[1]) == (256, 181)  # 211 * 256 / 300 = 180.05, rounded up
    pixels = np.asarray(square)
    assert pixels.shape == (256, 256, 3)
    assert box[1] == (256 - 181) // 2
    assert not pixels[: box[1]].any()
    assert not pixels[box[3] :].any()
    expected = original.resize((256, 181), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels[box[1] : box[3]], expected)
    expected, stored = expected.resize((300, 211), Image.Resampling.LANCZOS), io.BytesIO()
    assert np.array_equal(restored(square, box, original, "b.png"), expected)
    expected.save(stored, "JPEG")  # whose defaults lose something
    assert np.array_equal(restored(square, box, original, "a.jpg"), Image.open(stored))
    assert not np.array_equal(Image.open(stored), expected)


def test_scores_of_words():
    words, read = ["one", "three", "Four", "five", "six"], ["one", "tree", "four", "", "sixteen"]
    accuracy, similarity = text_scores(words, read)
    assert accuracy == [1, 0, 0, 0, 0]
    distances = [round(float(char_error_rate(r, w)) * len(w)) for w, r in zip(words, read, strict=True)]
    assert distances == [0, 1, 1, 4, 4]
    assert similarity == pytest.approx([1, 1 - 1 / 5, 1 - 1 / 4, 0, 1 - 4 / 7])
    assert text_scores([], []) == ([], [])


def test_bins_are_half_open_and_the_whole_is_the_mean_of_their_means():
    ratios, values = [0.019, 0.02, 0.0299, 0.03, 0.04, 0.5, 1.0], [9, 1, 2, 4, 5, 7, 9]
    found = binned(ratios, values, tokbench.TEXT_BINS[256])
    assert found == pytest.approx({"small": 1.5, "medium": 4, "large": 6, "": 11.5 / 3})
    assert np.isnan(binned([0.5], [1], tokbench.TEXT_BINS[256])["small"])


class Stand:
    """Reads the mean colour of a word; embeds the colours about a face's key points."""

    def __init__(self):
        self.words, self.faces = [], []

    def read(self, words):
        self.words += words
        return ["one" if len(words) > 1 else "too", "three"][: len(words)]

    def embed(self, image, points):
        self.faces.append((image, points))
        x, y = points.astype(int).T
        return image[y, x].astype(float).ravel()


def test_everything(folder):
    stand = Stand()
    result = evaluate_tokbench(same, folder, model=MODEL, size=256, reader=stand.read, faces=stand.embed)
    assert [word.shape for word in stand.words] == [(20, 50, 3), (40, 60, 3), (20, 50, 3)]
    square, box = padded(Image.open(folder / "images/text_data/ic13/a.jpg").convert("RGB"), 256)
    image = restored(square, box, Image.open(folder / "images/text_data/ic13/a.jpg"), "a.jpg")
    assert np.array_equal(stand.words[0], image[20:40, 10:60])
    assert {n: result[n] for n in ("t_acc_small", "t_acc_medium", "t_acc_large")} == {
        "t_acc_small": 1,
        "t_acc_medium": 1,
        "t_acc_large": 0,
    }
    assert result["t_acc"] == pytest.approx(2 / 3)
    assert result["t_ned_large"] == pytest.approx(1 - 1 / 3)
    (original, points), (other, _) = stand.faces[:2]
    assert original.shape == other.shape == (211, 300, 3)
    a, b = (stand.embed(image, points) for image in (original, other))
    assert result["f_sim_small"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert result["f_sim"] == pytest.approx(np.mean([result[f"f_sim_{n}"] for n in ("small", "medium", "large")]))
    assert result["bits_per_pixel"] == pytest.approx(100 / 256**2)
    assert result.data == result.data | {"images": 3, "words": 3, "faces": 4}
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))).protocol["name"] == "tokbench"


def test_sets_and_recognisers_that_are_not_there_are_left_out(folder, tmp_path):
    (folder / "annotations" / "face_meta.json").unlink()
    result = evaluate_tokbench(same, folder, model=MODEL, size=512, reader=Stand().read, faces=Stand().embed)
    assert np.isnan(result["f_sim"])
    with pytest.raises(ValueError, match="has no annotations of what is to be measured"):
        evaluate_tokbench(same, folder, model=MODEL, faces=Stand().embed)
    assert "f_sim" not in evaluate_tokbench(same, folder, model=MODEL, reader=Stand().read)
    for options, message in (
        ({"size": 300, "reader": Stand().read}, "at 256, 512 or 1024 pixels, not 300"),
        ({}, "needs a reader of words or a face network"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_tokbench(same, folder, model=MODEL, **options)
    (folder / "annotations" / "text_ic13.json").write_text('[{"file_name": "a.jpg"}]')
    with pytest.raises(ValueError, match="holds no annotations of TokBench: KeyError"):
        evaluate_tokbench(same, folder, model=MODEL, reader=Stand().read)
    with pytest.raises(FileNotFoundError, match="holds no annotations of TokBench, such as"):
        evaluate_tokbench(same, tmp_path / "images", model=MODEL, reader=Stand().read)


def test_command(folder, tmp_path, capsys, monkeypatch):
    stand = Stand()
    monkeypatch.setattr(tokbench, "DocTRReader", lambda device: stand.read)
    monkeypatch.setattr(tokbench, "InsightFace", lambda: stand.embed)
    target = tmp_path / "result.json"
    command = ["evaluate", "codec:webp@1", str(folder), "--protocol", "tokbench", "--device", "cpu"]
    assert main([*command, "--size", "512", "-o", str(target)]) == 0, capsys.readouterr().err
    result = Result.load(target)
    assert result.protocol["size"] == 512
    assert 0 < result["bits_per_pixel"] <= 1.05
    assert "t_acc_small" in capsys.readouterr().out
    assert main([*command, "--features", "inception"]) == 1
    assert "tokbench measures text and faces alone: leave --features out" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(20, 60), (20, 200), (64, 64), (32, 128), (1, 90)])
def test_words_are_fitted_for_the_reader(shape):
    word = np.random.default_rng(0).integers(1, 256, (*shape, 3), dtype=np.uint8)
    values = fitted(word)
    assert values.shape == (3, 32, 128)
    rows, columns = values.amax((0, 2)) > 0, values.amax((0, 1)) > 0
    height, width = int(rows.sum()), int(columns.sum())
    assert (height, width) == (min(32, max(1, 128 * shape[0] // shape[1])), min(128, max(1, 32 * shape[1] // shape[0])))
    assert bool(rows[:height].all())
    assert bool(columns[:width].all())


@pytest.mark.skipif(importlib.util.find_spec("doctr") is None, reason="docTR is not installed")
def test_doctr_reads_with_random_weights():
    torch.manual_seed(0)
    reader = DocTRReader(pretrained=False, batch_size=2)
    words = [np.random.default_rng(i).integers(0, 256, (20, 60 + i, 3), dtype=np.uint8) for i in range(3)]
    read = reader(words)
    assert len(read) == 3
    assert read == [reader([word])[0] for word in words]


@pytest.mark.skipif(importlib.util.find_spec("insightface") is None, reason="InsightFace is not installed")
def test_insightface_aligns_and_embeds(tmp_path):
    """A network that averages each colour of the aligned face."""
    import onnx
    from onnx import TensorProto, helper

    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "colours", [value("x", [None, 3, 112, 112])], [value("y", [None, 3])])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(tmp_path / "colours.onnx"))
    faces = tokbench.InsightFace(tmp_path / "colours.onnx")
    image = np.zeros((200, 200, 3), np.uint8)
    image[..., 0] = 255  # red
    points = np.array([[80.0, 90], [120, 90], [100, 110], [85, 130], [115, 130]], np.float32)
    assert faces(image, points) == pytest.approx([1, -1, -1], abs=1e-3)  # RGB, (x - 127.5) / 127.5
    with pytest.raises(FileNotFoundError, match="get antelopev2"):
        tokbench.InsightFace(tmp_path / "nothing.onnx")
