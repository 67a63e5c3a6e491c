"""Perceptual distances against torchmetrics' LPIPS and against the formula in float64."""

import pytest
import timm
import torch
from torch import nn

from gsqtok.losses import PerceptualDistance, build_perceptual
from gsqtok.networks.backbone import Backbone, load_backbone, random_backbone


@pytest.fixture(scope="module")
def vgg16_trunk():
    """torchvision's VGG16 with random convolutions; its huge classifier, which nothing here looks at, stays empty."""
    import torchvision

    torch.manual_seed(0)
    with torch.device("meta"):
        trunk = torchvision.models.vgg16(weights=None)
    trunk.features.to_empty(device="cpu")
    for layer in trunk.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)
    return trunk


@pytest.fixture(scope="module")
def lpips(vgg16_trunk, tmp_path_factory):
    file = tmp_path_factory.mktemp("vgg") / "vgg16-397923af.pth"
    weights = {k: torch.zeros(()).expand(v.shape) if v.is_meta else v for k, v in vgg16_trunk.state_dict().items()}
    torch.save(weights, file)
    return build_perceptual("lpips", str(file))


@pytest.fixture(scope="module")
def torchmetrics_lpips(vgg16_trunk):
    """torchmetrics' network with the same trunk and its own learnt heads."""
    from torchmetrics.functional.image import lpips as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_get_tv_model_features", lambda net, pretrained: vgg16_trunk.features)
        return module._NoTrainLpips(net="vgg")


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, 48, 64, generator=generator) * 2 - 1
    return (images + 0.3 * torch.randn(images.shape, generator=generator)).clamp(-1, 1), images


def test_lpips_equals_torchmetrics_value_and_gradient(lpips, torchmetrics_lpips, pair):
    reconstruction, images = pair
    ours, theirs = reconstruction.clone().requires_grad_(), reconstruction.clone().requires_grad_()
    value = lpips(ours, images)
    expected = torchmetrics_lpips(theirs, images, normalize=False).mean()  # False: it is given [-1, 1] as well
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3 * theirs.grad.abs().max().item())


def test_lpips_wants_minus_one_to_one(lpips, torchmetrics_lpips, pair):
    reconstruction, images = pair
    unit = [(x + 1) / 2 for x in pair]
    expected = torchmetrics_lpips(*unit, normalize=True).mean()
    torch.testing.assert_close(lpips(reconstruction, images), expected, rtol=1e-4, atol=1e-6)
    assert abs(lpips(*unit) - expected) > 0.01 * expected  # [0, 1] images are not the same thing


def test_lpips_heads_are_learnt_and_not_negative(lpips):
    heads = list(lpips.buffers(recurse=False))
    assert [len(h) for h in heads] == [64, 128, 256, 512, 512]
    assert all((h >= 0).all() and h.std() > 0 for h in heads)


def test_lpips_without_its_trunk_says_what_to_put_where(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        build_perceptual("lpips")
    message = str(caught.value)
    assert "download.pytorch.org/models/vgg16-397923af.pth" in message
    assert str(tmp_path / "checkpoints" / "vgg16-397923af.pth") in message
    assert "\n" not in message


def test_lpips_takes_the_trunk_from_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "vgg16-397923af.pth"
    torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=str(file)):  # it was found and read, and is not VGG16
        build_perceptual("lpips")


@pytest.fixture(scope="module")
def distance():
    torch.manual_seed(0)
    return PerceptualDistance(random_backbone("resnet18"))


def test_equal_weights_follow_the_formula_in_float64(pair):
    torch.manual_seed(0)
    full = timm.create_model("resnet18")
    value = PerceptualDistance(Backbone(full, "resnet18"))(*pair)
    full = full.double().eval()
    mean, std = (torch.tensor(full.pretrained_cfg[k]).double().view(1, 3, 1, 1) for k in ("mean", "std"))
    stages = [full.forward_intermediates((x.double() / 2 + 0.5 - mean) / std, intermediates_only=True) for x in pair]
    per_stage = []
    for a, b in zip(*stages, strict=True):
        cosine = nn.functional.cosine_similarity(a, b, dim=1)  # |u - v|^2 = 2 - 2 cos, where neither is zero
        alive = (a.norm(dim=1) > 1e-3) & (b.norm(dim=1) > 1e-3)
        assert alive.all()
        per_stage.append((2 - 2 * cosine).mean())
    assert len(per_stage) == 5
    torch.testing.assert_close(value.double(), torch.stack(per_stage).mean(), rtol=1e-4, atol=1e-6)


def test_gradient_reaches_the_reconstruction_alone(distance, pair):
    reconstruction, images = (x.clone().requires_grad_() for x in pair)
    distance(reconstruction, images).backward()
    assert images.grad is None
    assert torch.isfinite(reconstruction.grad).all()
    assert reconstruction.grad.abs().sum() > 0
    direction = reconstruction.grad / reconstruction.grad.norm()
    with torch.no_grad():
        step = 0.02
        change = distance(reconstruction + step * direction, images) - distance(
            reconstruction - step * direction, images
        )
    assert change.item() / (2 * step) == pytest.approx(reconstruction.grad.norm().item(), rel=0.1)


def test_zero_for_identical_flat_and_larger_for_worse(distance, pair):
    reconstruction, images = pair
    assert distance(images, images).item() == 0
    assert 0 < distance(images + 0.05 * (reconstruction - images), images) < distance(reconstruction, images)
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    distance(flat, torch.zeros(1, 3, 32, 32)).backward()  # no 0 / 0
    assert torch.isfinite(flat.grad).all()


def test_mean_over_the_batch(distance, pair):
    singles = torch.stack([distance(r[None], i[None]) for r, i in zip(*pair, strict=True)])
    torch.testing.assert_close(distance(*pair), singles.mean(), rtol=1e-4, atol=1e-6)


def test_an_empty_batch_loses_nothing(distance):
    assert distance(torch.empty(0, 3, 64, 64), torch.empty(0, 3, 64, 64)) == 0


def test_autocast_keeps_the_comparison_in_float32(distance, pair):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = distance(*pair)
        assert distance(pair[1], pair[1]).item() == 0
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(distance(*pair).item(), rel=0.1)


def test_nothing_to_train_or_to_save(distance):
    parent = nn.ModuleDict({"perceptual": distance})
    assert not parent.state_dict()
    assert not list(parent.parameters())


def test_vision_transformer_of_timm_by_name(tmp_path):
    name = "vit_tiny_patch16_224"
    torch.save(timm.create_model(name).state_dict(), tmp_path / f"{name}.pth")
    distance = build_perceptual(f"timm:{name}", tmp_path)
    assert distance.backbone.weights_sha256 == load_backbone(name, tmp_path).weights_sha256
    images = torch.rand(1, 3, 40, 40) * 2 - 1
    assert distance(images.flip(-1), images) > 0


@pytest.mark.parametrize("name", ["none", "vgg16", "timm:", "lpips:vgg16", ""])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="'lpips' or 'timm:NETWORK'"):
        build_perceptual(name)


def test_shapes_must_agree(distance):
    with pytest.raises(ValueError, match="differ in shape"):
        distance(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="channel_weights"):
        PerceptualDistance(distance.backbone, [torch.ones(64)])
