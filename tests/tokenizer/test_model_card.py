import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

import gsqtok
from gsqtok.data import load_image, to_pil
from gsqtok.evaluation.result import Result
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokenizer.model_card import GENERATED, model_card


@pytest.fixture
def result(tiny_tokenizer):
    return {
        "format": "gsqtok-evaluation-2",
        "model": {
            "name": "tiny",
            "fingerprint": tiny_tokenizer.fingerprint(),
            "quantizer": "gsq",
            "factor": 4,
            "bits_per_position": 12,
            "bits_per_pixel": 0.75,
            "precision": "float32",
        },
        "data": {"source": "images/val", "split": None, "images": 50_000, "skipped": 0, "fingerprint": "abc"},
        "protocol": {
            "name": "paper",
            "size": 256,
            "crop": "center",
            "resize_filter": "bicubic",
            "antialias": True,
            "rounding": "8 bits",
            "features": {"network": "tf_efficientnet_lite0", "input_size": None},
            "reference": None,
        },
        "metrics": {"psnr": 23.456, "rfid": 1.234, "ssim": None, "images": 50_000},
    }


def test_the_card_says_what_the_tokenizer_is(tiny_config):
    config = dataclasses.replace(tiny_config, adaptive_norm=True, attention_factors=(4,))
    tokenizer = ImageTokenizer(config)
    card = model_card(tokenizer, "owner/name", license="mit")
    for text in (
        "| down-sampling factor | 4 |",
        "| tokens per position | 2, each one of 64 |",
        "| bits per pixel | 0.75 (12 bits per position) |",
        "`gsq` (codebook_size = 64, groups = 2, commitment_weight = 0.25, norm = l2",
        "32 channels x [1, 1, 2], adaptive norm, attention at factors [4]",
        tokenizer.fingerprint(),
    ):
        assert text in card
    assert "## Metrics" not in card


def test_its_metadata_is_what_the_hub_reads(tiny_tokenizer, result):
    card = model_card(tiny_tokenizer, "owner/name", result, license="mit")
    data = ModelCard(card).data
    assert (data.library_name, data.license) == ("gsqtok", "mit")
    assert "image-tokenizer" in data.tags
    assert data.pipeline_tag == "image-to-image"
    measured = {r.metric_type: r.metric_value for r in data.eval_results}
    assert measured == {"psnr": 23.456, "rfid": 1.234, "images": 50_000}
    assert model_card(tiny_tokenizer, "owner/name", Result.from_dict(result), license="mit") == card
    assert {r.dataset_name for r in data.eval_results} == {"images/val"}
    plain = ModelCard(model_card(tiny_tokenizer, "name")).data
    assert plain.license is None  # of the weights, which is their owner's to say
    assert plain.eval_results is None


def test_metrics_come_with_how_they_were_measured(tiny_tokenizer, result):
    card = model_card(tiny_tokenizer, "name", result)
    assert "| PSNR | 23.46 dB |" in card
    assert "| rFID | 1.23 |" in card
    assert "SSIM" not in card  # not defined there
    assert "Measured on 50,000 images of images/val; protocol paper: size 256, crop center" in card
    assert "features of tf_efficientnet_lite0" in card


def test_the_example_in_the_card_runs(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "saved")
    card = model_card(tiny_tokenizer, str(tmp_path / "saved"))
    assert "pip install gsqtok\n" in card
    code = card.split("```python\n")[1].split("```")[0]
    Image.new("RGB", (8, 12)).save(tmp_path / "image.jpg")
    namespace = {}
    exec(code.replace("image.jpg", str(tmp_path / "image.jpg")), namespace)
    assert namespace["restored"].shape == (1, 3, 12, 8)


def test_a_run_gives_its_name(tiny_tokenizer, tmp_path, monkeypatch):
    tiny_tokenizer.save_pretrained(tmp_path / "mine" / "tokenizer")
    assert "\n# mine\n" in (tmp_path / "mine" / "tokenizer" / "README.md").read_text()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tiny_tokenizer.save_pretrained(".")
    assert "\n# here\n" in (tmp_path / "here" / "README.md").read_text()
    assert "\n# name\n" in model_card(tiny_tokenizer, "owner/name")


def test_with_an_evaluation_it_shows_reconstructions(tiny_tokenizer, result, tmp_path):
    tiny_tokenizer.train().save_pretrained(tmp_path / "saved", evaluation=result)
    assert tiny_tokenizer.training
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "![Images above their reconstructions](reconstructions.webp)\n\n```bash\npip install gsqtok" in card
    shown = Image.open(tmp_path / "saved" / "reconstructions.webp")
    assert shown.size == (3 * 258 + 2, 2 * 258 + 2)
    image = load_image(sorted((Path(gsqtok.__file__).parent / "demo_images").glob("*.png"))[0], size=256, crop="center")
    restored = to_pil(tiny_tokenizer.eval().decode(tiny_tokenizer.encode(image))[0])
    above, below = (np.asarray(shown.convert("RGB").crop((2, top, 258, top + 256))).astype(float) for top in (2, 260))
    assert np.abs(above - np.asarray(to_pil(image[0]))).mean() < 8  # but for the file's compression
    assert np.corrcoef(below.ravel(), np.asarray(restored).ravel())[0, 1] > 0.8
    tiny_tokenizer.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "reconstructions.webp").exists()
    assert "![" not in (tmp_path / "plain" / "README.md").read_text()


def test_a_card_is_renewed_until_somebody_changes_it(tiny_tokenizer, result, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "README.md"
    assert "PSNR" not in path.read_text()
    tiny_tokenizer.save_pretrained(tmp_path / "saved", evaluation=result)
    assert "PSNR" in path.read_text()
    path.write_text(path.read_text().replace(GENERATED, "My own words."))
    tiny_tokenizer.save_pretrained(tmp_path / "saved")
    assert "PSNR" in path.read_text()
    assert "My own words." in path.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not 'gsqtok-evaluation-2'"),
        ({"model": {"fingerprint": "0123"}}, "measured another tokenizer"),
    ],
)
def test_evaluations_that_do_not_belong(tiny_tokenizer, result, change, message, tmp_path):
    change = {k: result[k] | v if isinstance(v, dict) else v for k, v in change.items()}
    (tmp_path / "result.json").write_text(json.dumps(result | change))
    with pytest.raises(ValueError, match=message) as caught:
        tiny_tokenizer.save_pretrained(tmp_path / "saved", evaluation=tmp_path / "result.json")
    assert "result.json" in str(caught.value)
    assert not (tmp_path / "saved").exists()


def test_evaluations_that_cannot_be_read(tiny_tokenizer, result, tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json is not a JSON file"):
        model_card(tiny_tokenizer, "name", tmp_path / "bad.json")
    del result["metrics"]
    with pytest.raises(ValueError, match="lacks 'metrics'"):
        model_card(tiny_tokenizer, "name", result)
