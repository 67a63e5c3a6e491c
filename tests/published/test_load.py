"""Opening checkpoints: what is found, what is asked for, and what is refused."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny import CONFIGURATIONS, official, tokenizer

from gsqtok.published import list_families
from gsqtok.tokenizer import CheckpointError, ImageTokenizer

EACH = pytest.mark.parametrize("name", CONFIGURATIONS)


def written(folder, weights, name="weights.pt", **beside):
    torch.save(weights, folder / name)
    for file, content in beside.items():
        (folder / f"{file}.yaml").write_text(yaml.safe_dump(content))
    return folder / name


def error_of(source, kind=CheckpointError):
    with pytest.raises(kind) as caught:
        ImageTokenizer.from_pretrained(str(source))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600 + len(str(source))
    return message


@EACH
def test_a_file_says_what_its_networks_are(name, tmp_path):
    family, _, asked = CONFIGURATIONS[name]
    path = written(tmp_path, official(name))
    loaded = ImageTokenizer.from_pretrained(f"{family}:{path}{asked}")
    expected = tokenizer(name)
    assert loaded.config.to_dict() == expected.config.to_dict()
    for weight, value in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[weight], value), weight
    size = loaded.size or 16
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    tokens = loaded.encode(images)
    assert loaded.decode(tokens.to(torch.int32)).shape == images.shape
    with torch.no_grad():
        out = loaded(images)
    assert torch.equal(out.tokens, tokens)
    assert torch.equal(loaded.quantizer.decode(tokens).movedim(-1, 1), out.quantized)


@EACH
def test_what_is_missing_and_what_is_too_much_is_named(name, tmp_path):
    family, _, asked = CONFIGURATIONS[name]
    weights = official(name)
    last = list(weights)[-1] if family != "var" else "decoder.conv_out.bias"
    path = written(tmp_path, {k: v for k, v in weights.items() if k != last} | {"decoder.colour": torch.zeros(1)})
    message = error_of(f"{family}:{path}{asked}")
    assert "of a version of" in message
    assert last in message
    assert "it has decoder.colour, too" in message


def test_a_weight_of_another_shape(tmp_path):
    path = written(tmp_path, official("llamagen") | {"decoder.conv_out.weight": torch.zeros(4, 32, 3, 3)})
    assert "decoder.conv_out.weight has shape (4, 32, 3, 3), expected (3, 32, 3, 3)" in error_of(path)


@pytest.mark.parametrize("name", ["llamagen", "open_magvit2", "bitdance", "maskgit", "maskbit"])
def test_the_family_is_found(name, tmp_path):
    path = written(tmp_path, official(name))
    assert ImageTokenizer.from_pretrained(path).config.to_dict() == tokenizer(name).config.to_dict()
    save_file(official(name), tmp_path / "weights.safetensors")
    ImageTokenizer.from_pretrained(tmp_path)  # in two formats: the one that holds nothing but tensors


def test_families_with_the_same_names_are_told_apart_by_their_configuration(tmp_path):
    weights = official("taming")
    message = error_of(written(tmp_path, weights))
    assert "may be of ibq or taming" in message
    assert "as in ibq:" in message
    for target, family in (("taming.models.vqgan.VQModel", "taming"), ("src.IBQ.models.ibqgan.IBQ", "ibq")):
        path = written(tmp_path, weights, config={"model": {"target": target, "params": {"n_embed": 16}}})
        assert ImageTokenizer.from_pretrained(path).config.family == family


def test_a_file_of_no_family_lists_the_families(tmp_path):
    message = error_of(written(tmp_path, {"layer.weight": torch.zeros(2)}))
    assert f"of no family that is known ({', '.join(list_families())}): it holds layer.weight" in message
    assert "no family 'nobody' of published tokenizers; there are bitdance," in error_of(
        f"nobody:{tmp_path / 'weights.pt'}", ValueError
    )


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("wetok", "", "num_codebooks"),
        ("titok", "", "use_l2_norm"),
        ("bsq_vit", "", "do not say heads"),
        ("bsq_vit", "?heads=2", "do not say zero_mean"),
        ("var", "", "sides of its 3 grids (v_patch_nums)"),
        ("var", "?scales=1,4", "it has 3 grids, scales names 2"),
        ("wetok", "?groups=5", "groups=5 does not divide its 16 bits"),
        ("wetok", "?groups=many", "groups=many does not divide its 16 bits"),
    ],
)
def test_what_no_weight_tells_is_asked_for_by_name(name, asked, message, tmp_path):
    path = written(tmp_path, official(name))
    assert message in error_of(f"{name}:{path}{asked}")


def test_a_configuration_beside_the_file_tells_it(tmp_path):
    path = written(tmp_path, official("wetok"), config={"model": {"init_args": {"num_codebooks": 4}}})
    assert ImageTokenizer.from_pretrained(f"wetok:{path}").quantizer.tokens_per_position == 4
    path = written(tmp_path, official("titok"), config={"model": {"vq_model": {"use_l2_norm": True}}})
    assert ImageTokenizer.from_pretrained(path).layout == "sequence"


def test_an_option_that_a_family_does_not_take(tmp_path):
    path = written(tmp_path, official("llamagen"))
    assert "llamagen takes no option 'scales'" in error_of(f"llamagen:{path}?scales=1,2", ValueError)
    path = written(tmp_path, official("var"))
    assert "var takes no option 'size' for" in error_of(f"var:{path}?size=3", ValueError)


def test_averaged_weights_come_first(tmp_path):
    live, name = official("ibq"), "encoder.conv_in.bias"
    shadow = {"model_ema." + k.replace(".", ""): v + 1 if k == name else v for k, v in live.items()}
    state = live | shadow | {"model_ema.decay": torch.tensor(0.999), "loss.discriminator.weight": torch.zeros(1)}
    path = written(tmp_path, {"state_dict": state})
    for asked, bias in (("", live[name] + 1), ("?ema=true", live[name] + 1), ("?ema=false", live[name])):
        assert torch.equal(ImageTokenizer.from_pretrained(f"{path}{asked}").encoder.conv_in.bias, bias)
    path = written(tmp_path, {"state_dict": state}, config={"model": {"class_path": "IBQ", "use_ema": False}})
    assert torch.equal(ImageTokenizer.from_pretrained(path).encoder.conv_in.bias, live[name])


@pytest.mark.parametrize("key", ["ema_state_dict", "ema", "model", "state_dict"])
def test_sets_of_weights_in_one_file(key, tmp_path):
    weights = official("llamagen")
    wrong = {name: torch.zeros_like(value) for name, value in weights.items()}
    path = written(tmp_path, {"state_dict": wrong, "epoch": 3, key: {f"module.{k}": v for k, v in weights.items()}})
    assert torch.equal(ImageTokenizer.from_pretrained(path).quantizer.codebook, weights["quantize.embedding.weight"])


def test_decoders_that_draw_noise_are_refused(tmp_path):
    weights = official("bitdance")
    weights["decoder.conv_in.weight"] = weights["decoder.conv_in.weight"].repeat(1, 2, 1, 1)
    assert "gan_decoder" in error_of(written(tmp_path, weights))


def test_a_first_stage_of_titok_is_refused(tmp_path):
    weights = {name: value for name, value in official("titok").items() if not name.startswith("pixel_")}
    assert "its first stage" in error_of(f"titok:{written(tmp_path, weights)}?l2_norm=true")


# Files that are damaged or hostile


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return exec, (f"open({str(self.target)!r}, 'w').write('owned')",)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".pth"])
def test_a_hostile_file_runs_nothing(suffix, tmp_path):
    weights = {"model": official("llamagen"), "callbacks": Payload(tmp_path / "owned")}
    message = error_of(written(tmp_path, weights, f"weights{suffix}"))
    assert "nothing of it was run: it asks for" in message
    assert not (tmp_path / "owned").exists()
    torch.load(tmp_path / f"weights{suffix}", weights_only=False)
    assert (tmp_path / "owned").read_text() == "owned"  # it was real


def test_a_damaged_file(tmp_path):
    path = written(tmp_path, official("llamagen"))
    path.write_bytes(path.read_bytes()[:1000])
    assert "broken" in error_of(path)
    (tmp_path / "weights.safetensors").write_bytes(b"12345678nothing")
    assert "cannot be read" in error_of(tmp_path / "weights.safetensors")
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    assert "broken, or no file of plain tensors" in error_of(tmp_path / "notes.txt")


def test_a_folder_with_several_files_of_weights_or_none(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "emu3_vqgan"}))
    assert "holds no file of weights (.pt" in error_of(tmp_path)
    written(tmp_path, official("llamagen"), "a.pt")
    written(tmp_path, official("llamagen"), "b.pt")
    assert "several files of weights (a.pt, b.pt): name one" in error_of(tmp_path)


def test_a_broken_configuration_beside_the_weights(tmp_path):
    path = written(tmp_path, official("wetok"))
    (tmp_path / "config.yaml").write_text("model: [1, 2\nnum_codebooks: {")
    assert "config.yaml cannot be read" in error_of(f"wetok:{path}")
    (tmp_path / "config.yaml").write_text("a: &a\n  b: *a\n")  # endless
    assert "num_codebooks" in error_of(f"wetok:{path}")


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("diffusers", {"_class_name": "VQModel", "layers_per_block": 10**9}),
        ("diffusers", {"_class_name": "VQModel", "block_out_channels": [64], "down_block_types": ["Nonsense"]}),
        ("diffusers", {"_class_name": "VQModel", "layers_per_block": "two"}),
        ("emu3", {"model_type": "emu3_vqgan", "num_res_blocks": 10**9}),
    ],
)
def test_a_library_s_configuration_that_does_not_fit(family, config, tmp_path):
    save_file({f"encoder.{i}": torch.zeros(1) for i in range(8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    error_of(f"{tmp_path}?mean=0.5&std=0.5" if family == "emu3" else tmp_path)
