"""Adversarial losses against float64 closed forms and torch's cross entropy; a small GAN that must converge."""

import copy
import math

import processes
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gsqtok.losses import LeCam, adaptive_weight, discriminator_loss, generator_loss, r1_penalty

KINDS = ["hinge", "vanilla", "non_saturating"]
PAIRS = [("hinge", "vanilla"), ("vanilla", "non_saturating"), ("non_saturating", "hinge")]  # each once on either side


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    real = [3 * torch.randn(4, 1, 5, 6, generator=generator) + 1, 3 * torch.randn(4, 7, generator=generator)]
    fake = [3 * torch.randn(4, 1, 5, 6, generator=generator) - 1, 3 * torch.randn(4, 7, generator=generator)]
    return real, fake


def logarithm_of_p(logits):
    return torch.log(1 / (1 + torch.exp(-logits.double())))


GENERATOR = {
    "hinge": lambda fake: -fake.double(),
    "non_saturating": lambda fake: -logarithm_of_p(fake),
    "vanilla": lambda fake: torch.log(1 - 1 / (1 + torch.exp(-fake.double()))),
}
DISCRIMINATOR = {
    "hinge": (lambda x: torch.clamp(1 - x.double(), min=0) / 2, lambda x: torch.clamp(1 + x.double(), min=0) / 2),
    "non_saturating": (lambda x: -logarithm_of_p(x), lambda x: -logarithm_of_p(-x)),
    "vanilla": (lambda x: -logarithm_of_p(x) / 2, lambda x: -logarithm_of_p(-x) / 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_closed_forms_in_float64(maps, kind):
    real, fake = maps
    expected = sum(GENERATOR[kind](m).mean() for m in fake) / 2  # each map counts the same, whatever its size
    torch.testing.assert_close(generator_loss(fake, kind).double(), expected, rtol=1e-5, atol=1e-6)
    of_real, of_fake = DISCRIMINATOR[kind]
    expected = sum(of_real(r).mean() + of_fake(f).mean() for r, f in zip(real, fake, strict=True)) / 2
    torch.testing.assert_close(discriminator_loss(real, fake, kind).double(), expected, rtol=1e-5, atol=1e-6)


def test_cross_entropies_equal_torchs(maps):
    real, fake = [maps[0][0]], [maps[1][0]]
    entropy = nn.BCEWithLogitsLoss()
    one, zero = torch.ones_like(real[0]), torch.zeros_like(real[0])
    both = entropy(real[0], one) + entropy(fake[0], zero)
    torch.testing.assert_close(discriminator_loss(real, fake, "non_saturating"), both)
    torch.testing.assert_close(discriminator_loss(real, fake, "vanilla"), both / 2)
    torch.testing.assert_close(generator_loss(fake, "non_saturating"), entropy(fake[0], one))
    torch.testing.assert_close(generator_loss(fake, "vanilla"), -entropy(fake[0], zero))


def test_where_the_discriminator_knows_nothing():
    nothing = [torch.zeros(2, 1, 3, 3)]
    assert discriminator_loss(nothing, nothing, "hinge") == 1
    assert discriminator_loss(nothing, nothing, "vanilla") == pytest.approx(math.log(2))
    assert discriminator_loss(nothing, nothing, "non_saturating") == pytest.approx(2 * math.log(2))
    assert generator_loss(nothing, "hinge") == 0
    sure = [torch.full((2, 1), 1e4)], [torch.full((2, 1), -1e4)]
    for kind in KINDS:
        assert discriminator_loss(*sure, kind) == 0
    assert generator_loss(sure[0], "hinge") == -1e4  # negative, and no bug


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_point_the_right_way(maps, kind):
    real, fake = ([m.clone().requires_grad_() for m in side] for side in maps)
    generator_loss(fake, kind).backward()
    assert all((m.grad < 0).all() for m in fake)  # a higher logit makes the generator's loss lower
    for m in fake:
        m.grad = None
    discriminator_loss(real, fake, kind).backward()
    assert all((m.grad <= 0).all() and (m.grad < 0).any() for m in real)
    assert all((m.grad >= 0).all() and (m.grad > 0).any() for m in fake)


def test_where_the_generators_gradient_is_strong():
    found_out = torch.full((1, 1), -20.0, requires_grad=True)

    def slope(kind):
        return torch.autograd.grad(generator_loss([found_out], kind), found_out)[0].item()

    assert slope("hinge") == -1
    assert slope("non_saturating") == pytest.approx(-1)
    assert -1e-8 < slope("vanilla") < 0  # saturates


@pytest.mark.parametrize("kind", KINDS)
def test_float32_whatever_comes_in(maps, kind):
    real, fake = ([m.bfloat16() for m in side] for side in maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = (
            generator_loss(fake, kind),
            discriminator_loss(real, fake, kind),
            LeCam()(real, fake),
        )
    assert all(loss.dtype == torch.float32 and loss.ndim == 0 for loss in losses)
    exact = generator_loss([m.float() for m in fake], kind), discriminator_loss([m.float() for m in real], fake, kind)
    assert losses[:2] == exact
    far = [torch.tensor([[-1e4], [1e4]], requires_grad=True)]
    loss = generator_loss(far, kind) + discriminator_loss(far, far, kind)
    loss.backward()
    assert loss.isfinite()
    assert far[0].grad.isfinite().all()


def test_bad_input_is_refused(maps):
    real, fake = maps
    with pytest.raises(ValueError, match="'hinge', 'vanilla' or 'non_saturating', got 'wgan'"):
        generator_loss(fake, "wgan")
    with pytest.raises(ValueError, match="got 'Hinge'"):
        discriminator_loss(real, fake, "Hinge")
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        discriminator_loss(real, fake[:1], "hinge")
    with pytest.raises(ValueError, match="maps"):
        generator_loss([], "hinge")


@pytest.mark.parametrize(("generator_kind", "discriminator_kind"), PAIRS)
def test_a_small_gan_converges(generator_kind, discriminator_kind):
    """A shifted, stretched Gaussian in two dimensions; whatever the losses, it must be found."""
    torch.manual_seed(0)
    mean, spread = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.5])
    generator = nn.Linear(2, 2)
    discriminator = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2))
    discriminator.append(nn.Linear(64, 1))
    optimizers = [
        torch.optim.Adam(module.parameters(), rate, (0.0, 0.9))
        for module, rate in ((generator, 1e-2), (discriminator, 1e-2))
    ]

    def distance():  # squared 2-Wasserstein, of two Gaussians
        covariance = generator.weight @ generator.weight.T
        target = torch.diag(spread**2)
        values = torch.linalg.eigvals(covariance @ target).real.clamp(min=0)
        return (
            (generator.bias - mean).square().sum() + covariance.trace() + target.trace() - 2 * values.sqrt().sum()
        ).item()

    start = distance()
    for _ in range(250):
        real = mean + spread * torch.randn(128, 2)
        fake = generator(torch.randn(128, 2))
        loss = discriminator_loss([discriminator(real)], [discriminator(fake.detach())], discriminator_kind)
        loss = loss + 0.1 * r1_penalty(lambda x: [discriminator(x)], real)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        generator_loss([discriminator(fake)], generator_kind).backward()
        optimizers[0].step()
    assert start > 4
    assert distance() < 0.1


# LeCam


def test_an_empty_batch_loses_nothing():
    empty = [torch.empty(0, 1, 4, 4), torch.empty(0, 1)]
    for kind in ("hinge", "vanilla", "non_saturating"):
        assert generator_loss(empty, kind) == discriminator_loss(empty, empty, kind) == 0
    assert r1_penalty(lambda x: [x.flatten(1)], torch.empty(0, 3, 4, 4)) == 0
    lecam = LeCam()
    assert lecam(empty, empty) == 0
    assert not lecam.started


def test_lecam_by_hand():
    lecam = LeCam(decay=0.75)
    real, fake = [torch.tensor([[1.0], [3.0]])], [torch.tensor([[-1.0], [0.0]])]
    # first batch: the averages are its means, 2 and -0.5
    assert lecam(real, fake) == pytest.approx(((1.5**2 + 3.5**2) + (3**2 + 2**2)) / 2)
    assert (lecam.real, lecam.fake) == (2, -0.5)
    # second: 0.75 * 2 + 0.25 * 6 = 3 and 0.75 * -0.5 + 0.25 * 1.5 = 0
    real, fake = [torch.tensor([[5.0], [7.0]])], [torch.tensor([[1.0], [2.0]])]
    assert lecam(real, fake) == pytest.approx(((5**2 + 7**2) + (2**2 + 1**2)) / 2)
    assert (lecam.real, lecam.fake) == (3, 0)
    # evaluation leaves the averages
    lecam.eval()
    assert lecam(fake, real) == pytest.approx(((1 + 4) + (2**2 + 4**2)) / 2)
    assert (lecam.real, lecam.fake) == (3, 0)


def test_lecam_weighs_maps_alike_and_has_gradients(maps):
    real, fake = ([m.clone().requires_grad_() for m in side] for side in maps)
    lecam = LeCam()
    lecam(real, fake).backward()
    mean = (fake[0].mean() + fake[1].mean()) / 2
    torch.testing.assert_close(lecam.fake, mean.detach())
    for m in real:
        torch.testing.assert_close(m.grad, (m - mean).detach() / m.numel())  # 2 (m - a) / numel / 2 maps
    assert not lecam.real.requires_grad


def test_lecam_state_goes_into_a_checkpoint(tmp_path, maps):
    one, other = LeCam(0.9), LeCam(0.9)
    one(*maps)
    one([m + 1 for m in maps[0]], maps[1])
    torch.save(one.state_dict(), tmp_path / "lecam.pt")
    other.load_state_dict(torch.load(tmp_path / "lecam.pt", weights_only=True))
    assert set(one.state_dict()) == {"real", "fake", "started"}
    assert one.real.untyped_storage().data_ptr() != one.fake.untyped_storage().data_ptr()  # safetensors wants this
    assert one(*maps) == other(*maps)
    assert one.real == other.real


def test_lecam_survives_a_batch_that_is_not_finite(maps):
    lecam = LeCam()
    lecam([torch.tensor([torch.nan])], [torch.zeros(1)])
    assert not lecam.started
    lecam(*maps)
    before = lecam.real.clone()
    assert not lecam([torch.tensor([torch.inf])], [torch.zeros(1)]).isfinite()
    assert lecam.real == before
    with pytest.raises(ValueError, match="decay"):
        LeCam(1.0)


def test_lecam_graph_outlives_the_next_call(maps):
    lecam = LeCam()
    real = [m.clone().requires_grad_() for m in maps[0]]
    first = lecam(real, maps[1])
    lecam(maps[0], maps[1])
    first.backward()
    assert real[0].grad is not None


# R1


def test_r1_of_a_linear_discriminator_in_float64():
    torch.manual_seed(0)
    layer = nn.Linear(3 * 4 * 4, 5)
    images = torch.rand(6, 3, 4, 4)

    def linear(x):
        logits = layer(x.flatten(1))
        return [logits[:, :2], logits[:, 2:]]

    weight = layer.weight.detach().double()
    direction = (weight[:2].mean(0) + weight[2:].mean(0)) / 2
    expected = direction.square().sum()
    penalty = r1_penalty(linear, images)
    torch.testing.assert_close(penalty.double(), expected, rtol=1e-5, atol=0)
    penalty.backward()
    share = torch.tensor([1 / 4] * 2 + [1 / 6] * 3, dtype=torch.float64)
    torch.testing.assert_close(layer.weight.grad.double(), 2 * share[:, None] * direction, rtol=1e-5, atol=1e-7)


def test_r1_of_a_quadratic_discriminator():
    scale = torch.tensor(0.5, requires_grad=True)
    images = torch.rand(4, 3, 2, 2)
    penalty = r1_penalty(lambda x: [scale * x.square().sum((1, 2, 3)).unsqueeze(1)], images)
    expected = images.square().sum((1, 2, 3)).mean()  # |2 a x|^2
    torch.testing.assert_close(penalty, 4 * 0.25 * expected)
    penalty.backward()
    torch.testing.assert_close(scale.grad, 8 * 0.5 * expected)


def test_r1_is_float32_under_autocast_and_no_grad():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3)

    def discriminator(x):
        return [layer(x).square()]

    images = torch.rand(2, 3, 8, 8)
    exact = r1_penalty(discriminator, images)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        low = r1_penalty(discriminator, images.bfloat16().float())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, r1_penalty(discriminator, images.bfloat16()), rtol=0, atol=0)
    torch.testing.assert_close(low, exact, rtol=1e-2, atol=0)
    assert images.grad is None


# Adaptive weight


def test_adaptive_weight_by_hand():
    weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    reconstruction = (weight * torch.tensor([[3.0, 0], [0, 4.0]])).sum()  # gradient of norm 5
    adversarial = -(weight * torch.tensor([[0.0, 2.0], [0, 0]])).sum()  # of norm 2
    value = adaptive_weight(reconstruction, adversarial, weight)
    assert value == pytest.approx(2.5)
    assert not value.requires_grad
    assert weight.grad is None
    (reconstruction + value * adversarial).backward()  # the graph is still there, and the pulls are equal
    assert weight.grad[0, 1] == pytest.approx(-5)


def test_adaptive_weight_at_zero_gradients():
    weight = nn.Parameter(torch.ones(3))
    something, nothing = weight.sum(), (0 * weight).sum()
    unrelated = nn.Parameter(torch.ones(1)).sum()
    assert adaptive_weight(something, nothing, weight) == 1e4
    assert adaptive_weight(something, nothing, weight, limit=7) == 7
    assert adaptive_weight(nothing, something, weight) == 0
    assert adaptive_weight(nothing, nothing, weight) == 0
    assert adaptive_weight(something, unrelated, weight) == 1e4


# Two ranks


def networks():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1))
    discriminator = nn.Sequential(nn.Conv2d(3, 8, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4, 2))
    return generator, discriminator


def gan_step(generator, discriminator, last_layer, lecam, images):
    """Both steps on one batch; returns the adaptive weight, the penalty and LeCam's averages."""

    def judge(x):
        return [discriminator(x)]

    fake = generator(images)
    penalty = lecam(judge(images), judge(fake.detach()))
    loss = discriminator_loss(judge(images), judge(fake.detach()), "hinge")
    (loss + 0.1 * penalty + r1_penalty(judge, images)).backward()
    discriminator.requires_grad_(False)
    reconstruction = F.mse_loss(fake, images)
    adversarial = generator_loss(judge(fake), "non_saturating")
    weight = adaptive_weight(reconstruction, adversarial, last_layer)
    (reconstruction + weight * adversarial).backward()
    discriminator.requires_grad_(True)
    return torch.stack([weight, lecam.real, lecam.fake])


def run_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    images = torch.load(f"{folder}/images.pt")[rank::2]
    generator, discriminator = networks()
    metrics = gan_step(
        DistributedDataParallel(generator),
        DistributedDataParallel(discriminator),
        generator[-1].weight,
        LeCam(),
        images,
    )
    gradients = [p.grad for p in (*generator.parameters(), *discriminator.parameters())]
    torch.save((metrics, gradients), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.save(images, tmp_path / "images.pt")
    processes.spawn(run_rank, (str(tmp_path),))
    generator, discriminator = networks()
    expected = gan_step(generator, discriminator, generator[-1].weight, LeCam(), images)
    for rank in range(2):
        metrics, gradients = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(metrics, expected, rtol=1e-4, atol=1e-6)
        for ours, p in zip(gradients, (*generator.parameters(), *discriminator.parameters()), strict=True):
            torch.testing.assert_close(ours, p.grad, rtol=1e-3, atol=1e-6)


def test_copies_do_not_share_averages(maps):
    lecam = LeCam()
    lecam(*maps)
    other = copy.deepcopy(lecam)
    other([m + 9 for m in maps[0]], maps[1])
    assert lecam.real != other.real
