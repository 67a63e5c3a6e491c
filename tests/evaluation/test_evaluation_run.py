"""The metrics of a set of photos against those of each image by itself, in one process and in two."""

import numpy as np
import processes
import pytest
import torch
import torch.multiprocessing
from PIL import Image

import gsqtok
from gsqtok.data import ImageTransform, open_source, to_tensor
from gsqtok.evaluation import (
    CodebookUsage,
    Reconstruction,
    Result,
    differences,
    evaluate,
    measure,
)
from gsqtok.evaluation.fingerprint import SetFingerprint
from gsqtok.evaluation.protocol import AdmTransform
from gsqtok.evaluation.run import _Seen, _together
from gsqtok.evaluation.similarity import similarity, to_8_bits
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig
from gsqtok.tokenizer.allocation import GroupAllocator, map_bits


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    config = {"channels": 32, "multipliers": (1, 1), "encoder_blocks": 1, "decoder_blocks": 1, "latent_dim": 8}
    quantizer = {"name": "gsq", "groups": 2, "codebook_size": 64}
    return ImageTokenizer(TokenizerConfig(**config, quantizer=quantizer)).eval()


@pytest.fixture
def photos(tmp_path):
    """Five photos of three sizes, neighbours of the same size among them, odd sides too."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate([(24, 16), (24, 16), (17, 31), (24, 16), (12, 12)]):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def by_hand(tokenizer, images):
    usage, each, errors, values = CodebookUsage(64, 2), [], 0, 0
    for image in images:
        tokens = tokenizer.encode(image[None])
        one = similarity(tokenizer.decode(tokens, size=tuple(image.shape[1:])), image[None])
        errors, values = errors + one["squared_error"].item(), values + image.numel()
        each.append((one["psnr"].item(), one["ssim"].item()))
        usage.update(tokens)
    psnr, ssim = np.mean(each, axis=0)
    pooled = 10 * np.log10(255**2 * values / errors)
    of_set = {"psnr": psnr, "ssim": ssim, "psnr_pooled": pooled, "mse": errors / values, "images": len(images)}
    return of_set | usage.compute()


def check(result, expected):
    """``expected`` is what `by_hand` gives; convolutions of another batch size round elsewhere."""
    of_codebook = ("dead_codes", "positions", "tokens", "usage_per_group", "perplexity_per_group")
    for name, value in expected.items():
        where = result.codebook if name in of_codebook else result.data if name == "images" else result
        assert where[name] == pytest.approx(value, rel=1e-3), name


def test_tiles_give_the_metrics_of_the_whole(tokenizer, photos):
    whole, tiles = (evaluate(tokenizer, str(photos), tile=tile) for tile in (None, 6))
    assert (whole.model["tile"], tiles.model["tile"]) == (None, 6)
    assert differences(whole, tiles) == []  # the same up to rounding: they may be compared
    for name in ("psnr", "ssim", "usage", "perplexity"):
        assert tiles[name] == pytest.approx(whole[name], rel=1e-2), name
    half = evaluate(tokenizer, str(photos), tile=6, precision=torch.bfloat16)
    assert half["psnr"] == pytest.approx(whole["psnr"], abs=0.5)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_mixed_sizes(tokenizer, photos, batch_size):
    done = []
    result = evaluate(tokenizer, open_source(str(photos)), batch_size=batch_size, on_progress=done.append)
    images = [to_tensor(Image.open(file)) for file in sorted(photos.iterdir())]
    check(result, by_hand(tokenizer, images))
    assert result.data["images"] == sum(done) == 5
    assert result.data["skipped"] == 0
    assert result.codebook["positions"] == 3 * 12 * 8 + 9 * 16 + 6 * 6
    assert result.model["bits_per_position"] == 12
    assert result.model["bits_per_pixel"] == 3
    pixels = 3 * 24 * 16 + 17 * 31 + 12 * 12
    assert result["bits_per_pixel"] == pytest.approx(12 * result.codebook["positions"] / pixels, rel=1e-12)
    spent = result["entropy_bits"] * 2 * result.codebook["positions"]
    assert result["bits_per_pixel_entropy"] == pytest.approx(spent / pixels, rel=1e-12)
    assert 0 < result["images_per_second"] < min(result[f"{p}_images_per_second"] for p in ("encode", "decode"))


def test_transform(tokenizer, photos):
    transform = ImageTransform(14)
    result = evaluate(tokenizer, open_source(str(photos)), transform=transform)
    check(result, by_hand(tokenizer, [transform(Image.open(file)) for file in sorted(photos.iterdir())]))
    assert result.protocol["name"] == "custom"
    assert result.protocol["size"] == 14


def comparable(result):
    """All that should not depend on when and with how many processes one measures."""
    parts = result.to_dict()
    for name in [name for name in parts["metrics"] if name.endswith("images_per_second")]:
        del parts["metrics"][name]
    return {name: parts[name] for name in ("model", "data", "protocol", "metrics", "per_image", "codebook")}


def test_streaming_gives_the_same(tokenizer, photos):
    result = evaluate(tokenizer, open_source(str(photos)), batch_size=1)
    streamed = evaluate(tokenizer, open_source(str(photos), streaming=True), batch_size=1)
    assert comparable(streamed) == comparable(result)


def test_broken_images_are_left_out(tokenizer, photos):
    before = evaluate(tokenizer, open_source(str(photos)))
    (photos / "2a.png").write_bytes((photos / "2.png").read_bytes()[:60])
    (photos / "9.png").write_bytes(b"no image")
    after = evaluate(tokenizer, open_source(str(photos)))
    assert after.data.pop("skipped") == 2
    assert before.data.pop("skipped") == 0
    assert after.data == before.data
    assert after.codebook["positions"] == before.codebook["positions"]
    assert after.per_image["key"] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    for name in ("psnr", "ssim", "usage"):
        assert after[name] == pytest.approx(before[name], rel=1e-3)


@pytest.mark.parametrize("streaming", [False, True])
def test_only_broken_images(tokenizer, tmp_path, streaming):
    folder = tmp_path / "broken"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"no image could be read.*3") as error:
        evaluate(tokenizer, open_source(str(folder), streaming=streaming))
    assert "\n" not in str(error.value)


def test_small_images_have_no_ssim(tokenizer, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    metrics = evaluate(tokenizer, open_source(str(tmp_path)))
    assert np.isnan(metrics["ssim"])
    assert np.isfinite(metrics["psnr"])


def test_a_codebook_too_large_to_count(photos):
    config = TokenizerConfig(channels=32, multipliers=(1, 1), latent_dim=8, quantizer={"name": "identity"})
    result = evaluate(ImageTokenizer(config).eval(), open_source(str(photos)))
    assert result.model["bits_per_position"] == 8 * 32
    assert "psnr" in result
    assert "usage" not in result
    assert result.codebook is None


# Anything that reconstructs

MODEL = {
    "name": "darker",
    "fingerprint": None,
    "quantizer": None,
    "factor": None,
    "bits_per_position": None,
    "bits_per_pixel": None,
    "precision": "8 bits",
    "parameters": 0,
}


def darker(images):
    """Every value one 8-bit step lower, at 100 bits an image."""
    return Reconstruction((images - 1 / 127.5).clamp(-1, 1), bits=torch.full((len(images),), 100.0))


def test_a_codec(photos, mean_colours, tmp_path):
    done = {"features": mean_colours, "model": MODEL}
    result = measure(darker, str(photos), protocol="adm", size=12, save_reference=tmp_path / "r.npz", **done)
    images = [AdmTransform(12)(Image.open(file)) for file in sorted(photos.iterdir())]
    # a step of one everywhere but in black, which cannot be darker
    steps = torch.stack([((x + 1) * 127.5).round().gt(0).double().mean() for x in images])
    assert result["mse"] == pytest.approx(steps.mean().item(), rel=1e-9)
    assert result.per_image["psnr"] == pytest.approx((10 * torch.log10(255**2 / steps)).tolist(), rel=1e-9)
    assert result["psnr"] == pytest.approx(np.mean(result.per_image["psnr"]), rel=1e-12)
    assert result["bits_per_pixel"] == pytest.approx(100 / 144)
    assert result.codebook is None
    assert "usage" not in result
    assert result.per_image["key"] == [f"{i}.png" for i in range(5)]
    assert result.data["source"] == str(photos)
    assert result.data["fingerprint"] == fingerprint_of(images)
    assert result.protocol["features"] == mean_colours.record()
    assert result.protocol["reference"] == "originals"
    assert 0 < result["frechet_distance_mean_colours"] < 1e-3
    assert Result.from_dict(result.to_dict()).to_dict() == result.to_dict()

    again = measure(darker, str(photos), protocol="adm", size=12, reference=tmp_path / "r.npz", **done)
    assert again["frechet_distance_mean_colours"] == pytest.approx(result["frechet_distance_mean_colours"], rel=1e-6)
    assert again.protocol["reference"]["fingerprint"] == result.data["fingerprint"]
    assert [line.split(":")[0] for line in differences(result, again)] == ["reference"]


def fingerprint_of(images):
    whole = SetFingerprint()
    for image in images:
        whole.add(to_8_bits(image[None]))
    return whole.hexdigest()


def test_another_protocol_is_another_measurement(tokenizer, photos, mean_colours, tmp_path, caplog):
    options = {"features": mean_colours}
    first = evaluate(tokenizer, str(photos), protocol="adm", size=12, save_reference=tmp_path / "r.npz", **options)
    other = evaluate(tokenizer, str(photos), protocol="flex_gen", size=12, reference=tmp_path / "r.npz", **options)
    assert "another protocol: name: adm against flex_gen" in caplog.text
    lines = differences(first, other)
    assert "name: adm against flex_gen" in lines
    assert "resize filter: box halving, bicubic against bilinear" in lines
    assert not any(line.startswith("images") for line in lines)


def test_a_copy_of_the_images_is_the_same_data(tokenizer, photos, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for i, file in enumerate(sorted(photos.iterdir(), reverse=True)):
        Image.open(file).save(copy / f"image{i}.bmp")
    first, second = evaluate(tokenizer, str(photos)), evaluate(tokenizer, str(copy))
    assert first.data["fingerprint"] == second.data["fingerprint"]
    assert differences(first, second) == []


def test_precision_and_mode(tokenizer, photos):
    tokenizer.train()
    try:
        result = evaluate(tokenizer, str(photos), name="mine", precision=torch.bfloat16)
        assert tokenizer.training
    finally:
        tokenizer.eval()
    assert (result.model["name"], result.model["precision"]) == ("mine", "float32, bfloat16 autocast")
    exact = evaluate(tokenizer, str(photos))
    assert exact.model["precision"] == "float32"
    assert result["psnr"] != exact["psnr"]
    assert result["psnr"] == pytest.approx(exact["psnr"], abs=1)
    assert gsqtok.evaluate is evaluate


def test_names_that_are_no_text():
    seen = _Seen(torch.device("cpu"), None, [], None)
    images = torch.zeros(2, 3, 16, 16)
    seen.update(Reconstruction(images), images, ["a\udcff.png", "b.png"], 1.0)
    whole = _together([(*seen.part(), 0, "")], in_order=True)
    assert whole["per_image"]["key"] == ["a\udcff.png", "b.png"]


def test_bad_input(tokenizer, photos, mean_colours, tmp_path):
    source = open_source(str(photos))
    with pytest.raises(ValueError, match="not both"):
        evaluate(tokenizer, source, protocol="adm", transform=ImageTransform(12))
    for option in ({"neighbours": True}, {"reference": "r.npz"}, {"save_reference": "r.npz"}):
        with pytest.raises(ValueError, match="needs features"):
            evaluate(tokenizer, source, **option)
    with pytest.raises(ValueError, match="leave reference out"):
        evaluate(tokenizer, source, features=mean_colours, reference="a.npz", save_reference="b.npz")
    with pytest.raises(FileNotFoundError):
        evaluate(tokenizer, str(tmp_path / "absent"))


@pytest.fixture(scope="module")
def nested():
    torch.manual_seed(0)
    config = {"channels": 32, "multipliers": (1, 1), "encoder_blocks": 0, "decoder_blocks": 1, "latent_dim": 8}
    quantizer = {"name": "gsq", "groups": 4, "codebook_size": 16, "nested": "uniform"}
    return ImageTokenizer(TokenizerConfig(**config, quantizer=quantizer)).eval()


def test_groups_by_position(nested, photos):
    """Against each photo by itself: the images of the kept groups, their bits and the map's."""
    learnt_from = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    allocator = GroupAllocator.fitted(nested, [learnt_from], 2.5)
    result = evaluate(nested, photos, groups=allocator, batch_size=2)
    assert (result.model["groups"], result.model["mean_groups"]) == (None, 2.5)
    assert result.model["bits_per_pixel"] == 2.5 * 4 / 4
    usage, pixels, spent, maps = CodebookUsage(16, 4), 0, 0.0, 0.0
    for number, key in enumerate(result.per_image["key"]):
        image = to_tensor(Image.open(photos / key))[None]
        counts = allocator(nested.latent(image))
        tokens = nested.encode(image, groups=counts)
        usage.update(tokens)
        one = similarity(nested.decode(tokens, size=tuple(image.shape[2:])), image)
        assert result.per_image["psnr"][number] == pytest.approx(one["psnr"].item(), abs=1e-6)
        of_map, own = map_bits(counts, 4), image[0, 0].numel()
        bits = 4 * counts.sum().item() + of_map
        assert result.per_image["bits_per_pixel"][number] == pytest.approx(bits / own)
        pixels, spent, maps = pixels + own, spent + bits, maps + of_map
    assert result["bits_per_pixel"] == pytest.approx(spent / pixels)
    found = usage.compute()
    assert found["positions"] < found["tokens"] == result.codebook["tokens"] < 4 * found["positions"]
    assert result["perplexity"] == found["perplexity"]
    entropy = (found["entropy_bits"] * found["tokens"] + maps) / pixels
    assert result["bits_per_pixel_entropy"] == pytest.approx(entropy)
    assert evaluate(nested, photos).model["mean_groups"] is None


def test_groups_by_position_are_refused(nested, tokenizer, photos):
    allocator = GroupAllocator.fitted(nested, [torch.rand(2, 3, 16, 16) * 2 - 1], 2.5)
    with pytest.raises(ValueError, match="bits by position need nested groups"):
        evaluate(tokenizer, photos, groups=allocator)
    with pytest.raises(ValueError, match="pfid perturbs all groups"):
        evaluate(nested, photos, groups=allocator, pfid="0.5@5", features="inception")
    with pytest.raises(ValueError, match="counted for all groups"):
        evaluate(nested, photos, groups=2, bits=lambda tokens, size: torch.zeros(len(tokens)))
    with pytest.raises(TypeError, match=r"whole number from 1 to 4, got 2\.5"):
        evaluate(nested, photos, groups=2.5)


# Two processes


def run_scenarios(folder, broken, network):
    """Everything that is measured in one process and in two; an error is the outcome, too."""
    torch.manual_seed(0)
    config = {"channels": 32, "multipliers": (1, 1), "encoder_blocks": 1, "decoder_blocks": 1, "latent_dim": 8}
    model = ImageTokenizer(TokenizerConfig(**config, quantizer={"name": "gsq", "groups": 2, "codebook_size": 64}))
    whole = open_source(folder)
    outcomes = [
        comparable(evaluate(model, whole, protocol="adm", size=12, features=network, neighbours=True, batch_size=1)),
        comparable(evaluate(model, open_source(folder, streaming=True), batch_size=1)),
        comparable(evaluate(model, open_source(f"{folder}/2.png"), batch_size=1)),
    ]
    try:
        evaluate(model, broken)
    except ValueError as error:
        outcomes.append(str(error).partition(":")[0])
    return outcomes


def process(rank, rendezvous, folder, broken, network):
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}/meet", rank=rank, world_size=2)
    torch.save(run_scenarios(folder, broken, network), f"{rendezvous}/outcomes{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(photos, mean_colours, tmp_path):
    (photos / "1a.png").write_bytes(b"no image")
    for i in range(5, 12):
        Image.open(photos / "2.png").rotate(40 * i).save(photos / f"{i}.png")
    broken = tmp_path / "broken"
    broken.mkdir()
    for i in range(3):
        (broken / f"{i}.png").write_bytes(b"no image")
    expected = run_scenarios(str(photos), str(broken), mean_colours)
    assert expected[0]["data"]["images"] == 12
    assert expected[0]["data"]["skipped"] == 1
    assert min(expected[0]["metrics"][f"{name}_mean_colours"] for name in ("precision", "inception_score")) > 0
    assert expected[3] == "no image could be read"
    arguments = (str(tmp_path), str(photos), str(broken), mean_colours)
    processes.spawn(process, arguments)
    for rank in range(2):
        outcomes = torch.load(tmp_path / f"outcomes{rank}.pt")
        assert outcomes[3] == expected[3]
        for ours, one in zip(outcomes[:3], expected[:3], strict=True):
            undefined = {name for name, value in one["metrics"].items() if value is None}
            assert {name for name, value in ours["metrics"].items() if value is None} == undefined
            defined = [{k: v for k, v in x["metrics"].items() if k not in undefined} for x in (ours, one)]
            assert defined[0] == pytest.approx(defined[1], rel=1e-6)
            ours.pop("metrics")
            assert ours == {name: part for name, part in one.items() if name != "metrics"}
