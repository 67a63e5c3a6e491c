"""What all discriminators share: names, shapes, precision, gradients, state."""

import copy
import math

import pytest
import torch
from torch import nn

from gsqtok.discriminators import Discriminator, ProjectedDiscriminator, build_discriminator
from gsqtok.losses import discriminator_loss, generator_loss, r1_penalty
from gsqtok.networks.backbone import random_backbone

KINDS = ["patch", "patch-group", "stylegan", "projected-vit", "projected-resnet"]
KINDS += ["official-stylegan", "official-projected-vit", "official-projected-resnet"]


def build(kind, **options):
    torch.manual_seed(0)
    if kind.startswith("patch"):
        return build_discriminator("patch", channels=16, norm="group" if "group" in kind else "batch", **options)
    official = "official" in kind
    if "stylegan" in kind:
        return build_discriminator("stylegan", official=official, channels=8, **options)
    network, indices = ("test_vit", (1, 3)) if "vit" in kind else ("resnet10t", (0, 2))
    backbone = random_backbone(network, indices, 64 if official else None, embedding=True, official=official)
    return build_discriminator("projected", official=official, backbone=backbone, **options)


@pytest.fixture(params=KINDS)
def discriminator(request):
    return build(request.param)


def photos(batch=2, height=64, width=64):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'patchgan'; known: patch, stylegan, projected"):
        build_discriminator("patchgan")
    with pytest.raises(ValueError, match="'filters'; known: channels, layers, norm"):
        build_discriminator("patch", filters=3)
    with pytest.raises(ValueError, match="known: color, translation, cutout"):
        build_discriminator("patch", augment=("colour",))


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 1, 64, 64)])
def test_other_shapes_are_refused(discriminator, shape):
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\)"):
        discriminator(torch.zeros(shape))


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (65, 83)])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_size_and_batch(discriminator, size, batch):
    maps = discriminator(photos(batch, *size))
    assert maps
    for logits in maps:
        assert len(logits) == batch
        assert logits.isfinite().all()


def test_logits_are_float32_under_autocast_and_close(discriminator):
    images = photos()
    exact = discriminator.eval()(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = discriminator(images.bfloat16().float())
        low = discriminator(images.bfloat16())
    for a, b, c in zip(exact, rounded, low, strict=True):
        assert a.dtype == b.dtype == c.dtype == torch.float32
        assert torch.equal(b, c)
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1 * max(1, a.abs().max().item()))


def test_gradient_reaches_images_and_every_parameter(discriminator):
    images = photos().requires_grad_()
    generator_loss(discriminator(images), "non_saturating").backward()
    assert images.grad.isfinite().all()
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_r1_can_be_differentiated(discriminator):
    penalty = r1_penalty(discriminator, photos())
    penalty.backward()
    assert penalty > 0
    weights = [p for p in discriminator.parameters() if p.ndim > 1]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in weights)
    assert any(p.grad.abs().sum() > 0 for p in weights)


@pytest.mark.parametrize("kind", KINDS)
def test_generator_step_leaves_only_power_iterations(kind):
    discriminator = build(kind)
    before = {key: value.clone() for key, value in discriminator.state_dict().items()}
    discriminator.requires_grad_(False)  # as in the generator's step
    images = photos().requires_grad_()
    generator_loss(discriminator(images), "hinge").backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    changed = {key for key, value in discriminator.state_dict().items() if not torch.equal(value, before[key])}
    assert all(key.endswith(("._u", "._v")) for key in changed), changed
    if "projected" not in kind:
        assert not changed


def test_train_and_eval_agree(discriminator):
    images = photos()
    discriminator(images)
    judged = discriminator.eval()(images)
    again = discriminator.eval()(images)
    assert all(torch.equal(a, b) for a, b in zip(judged, again, strict=True))
    for a, b in zip(judged, discriminator.train()(images), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)  # a power iteration apart


@pytest.mark.parametrize("kind", KINDS)
def test_state_restores_the_verdict_and_the_next_step(kind):
    one, other = build(kind), build(kind)
    optimizers = [torch.optim.AdamW(d.parameters(), 1e-3) for d in (one, other)]
    real, fake = photos(), -photos()

    def step(discriminator, optimizer):
        optimizer.zero_grad()
        discriminator_loss(discriminator(real), discriminator(fake), "hinge").backward()
        optimizer.step()

    step(one, optimizers[0])
    assert not torch.equal(one(real)[0], other(real)[0])
    other.load_state_dict(one.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))  # else they share their tensors
    for discriminator, optimizer in zip((one, other), optimizers, strict=True):
        step(discriminator, optimizer)
    for a, b in zip(one(real), other(real), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_learns_to_tell_noise_from_gradients(kind):
    """The sign: after some steps real photos have the higher logits, and the loss is below chance."""
    discriminator = build(kind)
    optimizer = torch.optim.Adam(discriminator.parameters(), 5e-3, (0.5, 0.9))
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(20):
        slope = torch.linspace(-1, 1, 64).expand(4, 3, 64, 64)
        real = slope * (torch.rand(4, 3, 1, 1, generator=generator) * 2 - 1)
        fake = torch.rand(4, 3, 64, 64, generator=generator) * 2 - 1
        real_logits, fake_logits = discriminator(real), discriminator(fake)
        loss = discriminator_loss(real_logits, fake_logits, "vanilla")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # spectral norm and separate statistics hold the projected ones, here on random networks, close to chance
    assert sum(losses[-3:]) / 3 < (0.98 if "projected" in kind else 0.7) * math.log(2)
    assert all(r.mean() > f.mean() for r, f in zip(real_logits, fake_logits, strict=True))


def test_augmentation_acts_before_the_network():
    plain, augmented = build("patch-group"), build("patch-group", augment=("color", "cutout"))
    assert augmented.augment.policies == ("color", "cutout")
    images = photos()
    torch.manual_seed(3)
    changed = plain.augment.__class__(("color", "cutout"))(images)
    torch.manual_seed(3)
    assert torch.equal(augmented(images)[0], plain(changed)[0])
    assert not torch.equal(augmented(images)[0], augmented(images)[0])  # draws of its own each time
    assert torch.equal(plain(images)[0], plain(images)[0])


def test_are_modules_with_a_contract():
    class Mine(Discriminator):
        def __init__(self):
            super().__init__(("color",))
            self.conv = nn.Conv2d(3, 1, 1)

        def logits(self, images):
            return [self.conv(images)]

    assert Mine()(photos())[0].shape == (2, 1, 64, 64)
    assert issubclass(ProjectedDiscriminator, Discriminator)
