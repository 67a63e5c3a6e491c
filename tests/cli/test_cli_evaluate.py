"""gsqtok evaluate: options, what it says about weights that are not there, and two processes."""

import json

import numpy as np
import processes
import pytest
import timm
import torch
from PIL import Image

from gsqtok.cli import main
from gsqtok.evaluation import Reference, Result


@pytest.fixture
def model(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return str(folder)


@pytest.fixture
def network(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    return ["--features", "timm:test_resnet", "--weights", str(tmp_path / "resnet.pth")]


@pytest.fixture(autouse=True)
def no_cached_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_everything(model, images, network, tmp_path, capsys):
    target = tmp_path / "out" / "r.json"
    reference = tmp_path / "reference.npz"
    options = ["--protocol", "adm", "--size", "24", *network, "--neighbours", "--perceptual"]
    command = ["evaluate", model, images, *options]
    assert main([*command, "--save-reference", str(reference), "-o", str(target)]) == 0
    captured = capsys.readouterr()
    assert "left out" not in captured.err
    assert "frechet_distance_test_resnet" in captured.out
    assert "fid" not in captured.out.replace("fid" + "elity", "")
    assert "adm: 24 px, crop center, resized by box halving, bicubic, antialiased, 8 bits" in " ".join(
        captured.out.replace("│", " ").split()
    )
    result = Result.load(target)
    assert result.model["name"] == model
    assert result.protocol["name"] == "adm"
    assert result.environment["command"].startswith(f"gsqtok evaluate {model} {images} --protocol adm --size 24")
    assert len(result.per_image["key"]) == result.data["images"] == 7
    assert len(result.images) == 6
    assert all((target.parent / image["original"]).exists() for image in result.images)
    assert sum(result.codebook["counts_sorted"]) == result.codebook["positions"] * 2
    assert Reference.load(reference).data["fingerprint"] == result.data["fingerprint"]

    again = [*command, "--reference", str(reference), "-o", str(tmp_path / "again.json")]
    assert main(again) == 0
    name = "frechet_distance_test_resnet"
    assert Result.load(tmp_path / "again.json")[name] == pytest.approx(result[name], rel=1e-6)


def test_absent_weights_are_named_and_left_out(model, images, capsys):
    assert main(["evaluate", model, images]) == 0
    lines = capsys.readouterr().err.splitlines()
    for file in ("weights-inception-2015-12-05-6726825d.pth", "vgg16-397923af.pth", "alexnet-owt-7be5be79.pth"):
        (line,) = [line for line in lines if file in line]
        assert line.startswith("left out: ")
        assert f"hub/checkpoints/{file}" in line
    assert main(["evaluate", model, images, "--features", "none", "--perceptual"]) == 0
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "native", "--crop", "center"], "leave --crop out"),
        (["--protocol", "native", "--size", "8"], "leave the size out"),
        (["--protocol", "adm", "--size", "8", "--crop", "center"], "leave --crop out"),
        (["--tile", "5"], "tile must be an even number"),
        (["--features", "vgg"], "'inception' or 'timm:NETWORK'"),
        (["--features", "none", "--neighbours"], "needs features"),
        (["--features", "inception", "--weights", "absent.pth"], "no weights at absent.pth"),
    ],
)
def test_wrong_options(model, images, capsys, options, message):
    assert main(["evaluate", model, images, "--perceptual", *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_equal_one(model, images, network, tmp_path):
    command = ["evaluate", model, images, *network, "--perceptual", "--batch-size", "1", "-o"]
    assert main([*command, str(tmp_path / "one.json"), "--device", "cpu"]) == 0
    done = processes.run_ranks([*command, tmp_path / "two.json"])
    assert [rank.returncode for rank in done] == [0, 0], [rank.stderr for rank in done]
    assert "".join(rank.stdout for rank in done).count("frechet_distance") == 1  # one process speaks
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert two["environment"]["processes"] == 2
    for part in ("model", "data", "protocol", "codebook"):
        assert two[part] == one[part]
    assert two["per_image"]["key"] == one["per_image"]["key"]
    for name, value in one["metrics"].items():
        if not name.endswith("images_per_second") and value is not None:
            assert two["metrics"][name] == pytest.approx(value, rel=1e-5), name
