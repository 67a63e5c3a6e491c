"""Results as files: what is written is read again, what is not one is refused, unlike protocols are named."""

import copy
import json
import math

import pytest

from gsqtok.evaluation.result import FORMAT, Result, ResultError, differences


@pytest.fixture
def result():
    return Result(
        model={
            "name": "runs/mine",
            "fingerprint": "ab" * 32,
            "quantizer": "gsq",
            "factor": 8,
            "bits_per_position": 104.0,
            "bits_per_pixel": 1.625,
            "precision": "float32",
            "parameters": 12,
        },
        data={"source": "images", "split": None, "images": 2, "skipped": 0, "fingerprint": "cd" * 32},
        protocol={
            "name": "adm",
            "size": 256,
            "crop": "center",
            "resize_filter": "box, bicubic",
            "antialias": True,
            "rounding": "8 bits",
            "features": {"network": "inception", "weights_sha256": "ef", "input_size": 299, "resize": "bilinear"},
            "reference": "originals",
        },
        metrics={"psnr": 31.5, "ssim": math.nan, "rfid": 2.0},
        per_image={"key": ["ä.png", "b.png"], "psnr": [31.0, 32.0], "ssim": [0.9, math.nan]},
        codebook={"counts_sorted": [3, 1], "codebook_size": 4, "groups": 1, "positions": 4},
        images=[{"key": "ä.png", "rank": "worst", "original": "r.images/a.png", "reconstruction": "r.images/b.png"}],
        environment={"torch": "2"},
    )


def test_written_and_read_again(result, tmp_path):
    result.save(tmp_path / "new" / "r.json")
    record = json.loads((tmp_path / "new" / "r.json").read_text("utf-8"))
    assert record["format"] == FORMAT
    assert record["metrics"] == {"psnr": 31.5, "ssim": None, "rfid": 2.0}
    again = Result.load(tmp_path / "new" / "r.json")
    assert again.to_dict() == record
    assert dict(again) == record["metrics"]
    assert again["psnr"] == 31.5
    assert "rfid" in again
    assert "lpips_vgg" not in again
    assert again.per_image["key"] == ["ä.png", "b.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("format"), "gsqtok evaluate"),
        (lambda r: r.update(format="gsqtok-evaluation-0"), "measure again"),
        (lambda r: r.pop("protocol"), "lacks 'protocol'"),
        (lambda r: r["data"].pop("fingerprint"), "'data' lacks 'fingerprint'"),
        (lambda r: r.update(metrics=[1]), "'metrics' is not an object"),
        (lambda r: r["metrics"].update(psnr="31"), "'psnr' is not a number but '31'"),
        (lambda r: r["metrics"].update(psnr=10**400), "'psnr' is not a number but 1000"),
        (lambda r: r["codebook"].update(codebook_size=0), "'codebook_size' is not a positive integer but 0"),
        (lambda r: r["model"].update(bits_per_pixel=[1]), "'bits_per_pixel' is not a number"),
        (lambda r: r["per_image"].update(key=["a", "a"]), "names an image twice"),
        (lambda r: r["images"].append("a"), "not a list of objects"),
        (lambda r: r["metrics"].update(psnr=True), "'psnr' is not a number"),
        (lambda r: r["per_image"]["psnr"].pop(), "lists of one length"),
        (lambda r: r["per_image"].pop("key"), "'per_image' lacks 'key'"),
        (lambda r: r["codebook"].pop("groups"), "'codebook' lacks 'groups'"),
        (lambda r: r["codebook"].update(tokens="many"), "'codebook' 'tokens' is not a count but 'many'"),
        (lambda r: r["images"][0].update(rank="nicest"), "one of best, median, worst but 'nicest'"),
        (lambda r: r.update(more=1), "unknown part 'more'"),
    ],
)
def test_what_is_no_result_is_refused(result, tmp_path, change, message):
    record = result.to_dict()
    change(record)
    (tmp_path / "r.json").write_text(json.dumps(record))
    with pytest.raises(ResultError, match=message) as error:
        Result.load(tmp_path / "r.json")
    assert "r.json" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"psnr: 3", b"\xff\xfe", b"[1]", b"3"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ResultError, match=r"r\.json"):
        Result.load(tmp_path / "r.json")
    with pytest.raises(FileNotFoundError):
        Result.load(tmp_path / "absent.json")


def test_differences(result):
    other = copy.deepcopy(result)
    other.model["name"] = "another"
    other.environment["device"] = "an H100"
    other.data["source"] = "a copy of the images"
    assert differences(result, other) == []
    other.protocol["features"]["weights_sha256"] = "99"
    other.data |= {"fingerprint": "00" * 32, "source": "elsewhere"}
    assert differences(result, other) == [
        "features weights sha256: ef against 99",
        "images: 2 of images (fingerprint cdcdcdcdcdcd) against 2 of elsewhere (fingerprint 000000000000)",
    ]
    other.protocol["crop"] = "none"
    other.data["source"] = "images"
    lines = differences(result, other)  # another crop makes another fingerprint, even of the same images
    assert lines == ["crop: center against none", "features weights sha256: ef against 99"]
    other.data["images"] = 3
    assert differences(result, other)[2].startswith("images: 2 of images")
    other.protocol |= {"features": None, "more": 1}
    lines = differences(result, other)
    assert "features: inception against none" in lines
    assert "more: none against 1" in lines
