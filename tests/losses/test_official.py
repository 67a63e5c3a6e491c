"""The official code's reductions: the values that were measured on it, closed forms in float64, and what they share."""

import pytest
import torch
from torch.nn import functional as F

from gsqtok.losses import adversarial, official

KINDS = ["hinge", "vanilla", "non_saturating"]
CROSS_ENTROPIES = KINDS[1:]


def quantiles(mean, spread, count=4096):
    """Normal logits without the luck of a draw: one image, every quantile once, mean and spread exact."""
    values = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    return [(mean + spread * values / values.std(correction=0)).view(1, 1, 64, -1)]


# The measured logits are not on record. Two normal distributions have four numbers, which the first values below fix;
# the others must then follow.
FAKE, REAL = quantiles(-0.4066, 1.4692), quantiles(0.3934, 1.5025)


@pytest.mark.parametrize("kind", CROSS_ENTROPIES)
def test_the_measured_values(kind):
    assert official.generator_loss(FAKE, kind).item() == pytest.approx(0.917, abs=5e-4)
    assert official.discriminator_loss(REAL, FAKE, kind).item() == pytest.approx(0.513, abs=5e-4)


def test_ours_on_the_same_logits():
    assert adversarial.generator_loss(FAKE, "non_saturating").item() == pytest.approx(1.135, abs=5e-4)
    assert adversarial.discriminator_loss(REAL, FAKE, "non_saturating").item() == pytest.approx(1.471, abs=5e-4)


def test_the_measured_cosine_between_the_gradients():
    gradients = []
    for losses in (official, adversarial):
        fake = FAKE[0].clone().requires_grad_()
        losses.generator_loss([fake], "non_saturating").backward()
        gradients.append(fake.grad.flatten())
    assert F.cosine_similarity(*gradients, dim=0).item() == pytest.approx(0.908, abs=5e-4)


def test_the_measured_lecam():
    for losses, measured in ((official, 3.407), (adversarial, 5.739)):
        lecam = losses.LeCam()
        assert [lecam(REAL, FAKE).item() for _ in range(5)][-1] == pytest.approx(measured, rel=0.03)  # other logits


def test_wide_logits():
    wide = quantiles(0.0, 3.0)
    assert official.generator_loss(wide, "non_saturating").item() == pytest.approx(0.6931, abs=1e-4)  # of log 2
    assert adversarial.generator_loss(wide, "non_saturating").item() == pytest.approx(1.394, abs=1e-3)


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    shapes = (4, 1, 5, 6), (4, 7)
    real = [3 * torch.randn(shape, generator=generator) + 1 for shape in shapes]
    return real, [3 * torch.randn(shape, generator=generator) - 1 for shape in shapes]


@pytest.mark.parametrize("kind", KINDS)
def test_closed_forms_in_float64(maps, kind):
    real, fake = maps
    rows = [[torch.cat([m[image].double().flatten() for m in side]) for image in range(4)] for side in (real, fake)]
    generator, discriminator = [], []
    for x, y in zip(*rows, strict=True):
        if kind == "hinge":
            generator.append(-y.mean())
            discriminator.append((torch.clamp(1 - x, min=0).mean() + torch.clamp(1 + y, min=0).mean()) / 2)
        else:
            generator.append(torch.log(1 + torch.exp(-y.mean())))
            discriminator.append((torch.log(1 + torch.exp(-x.mean())) + torch.log(1 + torch.exp(y.mean()))) / 2)
    found = official.generator_loss(fake, kind), official.discriminator_loss(real, fake, kind)
    for value, of_images in zip(found, (generator, discriminator), strict=True):
        assert value.item() == pytest.approx(torch.stack(of_images).mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_logit_an_image_leaves_scale_alone(maps, kind):
    """With StyleGAN's single logit nothing is averaged."""
    one = [[m.flatten(1)[:, :1] for m in side[:1]] for side in maps]
    ratio = official.discriminator_loss(*one, kind) / adversarial.discriminator_loss(*one, kind)
    assert ratio.item() == pytest.approx(0.5 if kind == "non_saturating" else 1)
    if kind != "vanilla":
        found = official.generator_loss(one[1], kind)
        torch.testing.assert_close(found, adversarial.generator_loss(one[1], kind))


def test_all_logits_of_an_image_get_the_same_gradient(maps):
    fake = [m.clone().requires_grad_() for m in maps[1]]
    official.generator_loss(fake, "non_saturating").backward()
    for image in range(4):
        gradient = torch.cat([m.grad[image].flatten() for m in fake])
        assert len(gradient) == 37
        assert gradient.max() == gradient.min() < 0


def test_lecam_by_hand():
    lecam = official.LeCam(decay=0.75)
    real, fake = [torch.tensor([[1.0], [-3.0]])], [torch.tensor([[-1.0], [2.0]])]
    # from 0: averages 0.25 * -1 = -0.25 and 0.25 * 0.5 = 0.125
    expected = (0.875**2 + 0) / 2 + (0.75**2 + 0) / 2
    assert lecam(real, fake).item() == pytest.approx(expected)
    assert (lecam.real, lecam.fake) == (-0.25, 0.125)
    # then 0.75 of these, and a quarter of the means 5 and 1
    real, fake = [torch.tensor([[5.0], [5.0]])], [torch.tensor([[1.0], [1.0]])]
    average = 0.75 * -0.25 + 0.25 * 5, 0.75 * 0.125 + 0.25
    assert lecam(real, fake).item() == pytest.approx((5 - average[1]) ** 2 + max(0.0, average[0] - 1) ** 2)
    lecam.eval()
    before = lecam.real
    lecam(fake, real)
    assert lecam.real == before
    assert official.LeCam().decay == 0.999


def test_r1_is_of_the_sum():
    torch.manual_seed(0)
    layer, images = torch.nn.Conv2d(3, 1, 4, stride=4), torch.randn(2, 3, 8, 8)
    penalty = official.r1_penalty(lambda x: [layer(x)], images)
    # each pixel belongs to one of four logits, whose gradient is its weight
    assert penalty.item() == pytest.approx(4 * layer.weight.square().sum().item(), rel=1e-5)
    assert penalty.item() == pytest.approx(4**2 * adversarial.r1_penalty(lambda x: [layer(x)], images).item(), rel=1e-5)
    two = official.r1_penalty(lambda x: [layer(x), layer(x)], images)
    assert two.item() == pytest.approx(4 * penalty.item(), rel=1e-5)


def test_the_adaptive_weight_s_limit():
    weight = torch.ones(3, requires_grad=True)
    strong, weak = (weight * 1e6).sum(), (weight * 1e-9).sum()
    assert official.adaptive_weight(strong, weak, weight) == 1e3
    assert adversarial.adaptive_weight(strong, weak, weight) == 1e4
    assert official.adaptive_weight(strong, 2 * strong, weight).item() == pytest.approx(0.5)


def test_float32_empty_batches_and_bad_input(maps):
    real, fake = ([m.bfloat16() for m in side] for side in maps)
    empty = [torch.empty(0, 1, 4, 4), torch.empty(0, 1)]
    for kind in KINDS:
        for loss in (official.generator_loss(fake, kind), official.discriminator_loss(real, fake, kind)):
            assert loss.dtype == torch.float32
            assert loss.ndim == 0
        assert official.generator_loss(empty, kind) == official.discriminator_loss(empty, empty, kind) == 0
    lecam = official.LeCam()
    assert lecam(empty, empty) == 0
    assert (lecam.real, lecam.fake) == (0, 0)
    assert lecam(real, fake).dtype == torch.float32
    with pytest.raises(ValueError, match="got 'wgan'"):
        official.generator_loss(fake, "wgan")
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        official.discriminator_loss(real, fake[:1], "hinge")


def test_both_modules_have_the_same_names():
    names = ("generator_loss", "discriminator_loss", "LeCam", "r1_penalty", "adaptive_weight")
    assert all(callable(getattr(module, name)) for module in (official, adversarial) for name in names)
