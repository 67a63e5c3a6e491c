"""DiffAugment: every policy's range, statistics, identity, gradients and draws."""

import pytest
import torch
from torch.nn import functional as F

import gsqtok.discriminators.augment as module
from gsqtok.discriminators import DiffAugment

POLICIES = DiffAugment.POLICIES


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def constant_draws(monkeypatch, uniform=None, below=None):
    """Every uniform number the given one; every whole number below end the given share of end - 1."""
    if uniform is not None:
        monkeypatch.setattr(module, "_uniform", lambda x: torch.full((len(x), 1, 1, 1), uniform, dtype=x.dtype))
    if below is not None:
        monkeypatch.setattr(module, "_below", lambda x, end: torch.full((len(x), 1), round(below * (end - 1))))


def test_nothing_chosen_is_the_identity():
    images = torch.rand(2, 3, 8, 8)
    assert DiffAugment()(images) is images


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match="'flip'; known: color, translation, cutout"):
        DiffAugment(["color", "flip"])
    assert DiffAugment("color").policies == ("color",)  # not its letters


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [(16, 16), (9, 20), (1, 1)])
def test_affine_with_the_right_gradient(policy, size):
    images = torch.rand(3, 3, *size, dtype=torch.float64, requires_grad=True)

    def apply(x):
        torch.manual_seed(7)
        return DiffAugment([policy])(x)

    out = apply(images)
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    other = torch.rand_like(images)
    offset = apply(torch.zeros_like(images))
    torch.testing.assert_close(apply(images + other), out + apply(other) - offset)
    # the gradient of an affine map: <J^T v, x> = <v, J x>
    v = torch.rand_like(images)
    (gradient,) = torch.autograd.grad((out * v).sum(), images, create_graph=True)
    torch.testing.assert_close((gradient * images).sum(), ((out - offset) * v).sum())
    assert torch.autograd.gradgradcheck(apply, images) if size == (1, 1) else True


@pytest.mark.parametrize("policy", POLICIES)
def test_each_image_and_call_has_its_own_draw_and_a_seed_repeats_them(policy):
    images = torch.rand(1, 3, 32, 32).expand(8, 3, 32, 32)
    augment = DiffAugment([policy])
    state = torch.get_rng_state()
    first = augment(images)
    second = augment(images)
    assert len(torch.unique(first.flatten(1), dim=0)) > 4
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(augment(images), first)
    assert torch.equal(augment(images), second)


def test_policies_act_in_order():
    images = torch.rand(2, 3, 16, 16)
    torch.manual_seed(1)
    both = DiffAugment(("cutout", "color"))(images)
    torch.manual_seed(1)
    assert torch.equal(both, DiffAugment("color")(DiffAugment("cutout")(images)))


def test_exact_under_autocast():
    images = torch.rand(4, 3, 16, 16)
    for policy in POLICIES:
        torch.manual_seed(2)
        exact = DiffAugment([policy])(images)
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(DiffAugment([policy])(images), exact)


# colour


def test_color_of_middling_draws_is_the_identity(monkeypatch):
    constant_draws(monkeypatch, uniform=0.5)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(DiffAugment("color")(images), images)


def test_color_by_hand(monkeypatch):
    constant_draws(monkeypatch, uniform=0.0)  # brightness - 0.5, no colour, half the contrast
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    grey = images.mean(1, keepdim=True) - 0.5
    expected = 0.5 * grey + 0.5 * grey.mean((2, 3), keepdim=True)
    torch.testing.assert_close(DiffAugment("color")(images), expected.expand_as(images))


def test_color_statistics():
    images = torch.rand(20_000, 3, 2, 2, dtype=torch.float64) * 2 - 1
    out = DiffAugment("color")(images)
    shift = out.mean((1, 2, 3)) - images.mean((1, 2, 3))
    assert -0.5 <= shift.min() < -0.49
    assert 0.49 < shift.max() <= 0.5
    assert abs(shift.var() - 1 / 12) < 0.003

    def spread(x):  # of the grey image about its mean: contrast alone changes it
        return x.mean(1).flatten(1).std(1)

    contrast = spread(out) / spread(images)
    assert abs(contrast.mean() - 1) < 0.01
    assert 0.5 <= contrast.min() < 0.51
    assert 1.49 < contrast.max() <= 1.5
    colour = (out - out.mean(1, keepdim=True)).flatten(1).norm(dim=1)
    saturation = colour / (images - images.mean(1, keepdim=True)).flatten(1).norm(dim=1) / contrast
    assert abs(saturation.mean() - 1) < 0.02
    assert saturation.min() < 0.01
    assert 1.99 < saturation.max() <= 2.0001


# translation


def test_translation_by_nothing_is_the_identity(monkeypatch):
    constant_draws(monkeypatch, below=0.5)
    images = torch.rand(2, 3, 24, 17)
    assert torch.equal(DiffAugment("translation")(images), images)


def test_translation_moves_zeros_in(monkeypatch):
    images = torch.rand(2, 3, 24, 16) + 1
    constant_draws(monkeypatch, below=0)  # the farthest: the source lies 3 rows and 2 columns earlier
    expected = F.pad(images[:, :, :-3, :-2], (2, 0, 3, 0))
    assert torch.equal(DiffAugment("translation")(images), expected)
    constant_draws(monkeypatch, below=1)
    assert torch.equal(DiffAugment("translation")(images), F.pad(images[:, :, 3:, 2:], (0, 2, 0, 3)))


def test_translation_statistics():
    images = torch.zeros(9_000, 3, 16, 16)
    images[:, :, 8, 8] = 1
    place = DiffAugment("translation")(images)[:, 0].flatten(1).argmax(1)
    rows, columns = place // 16 - 8, place % 16 - 8
    for shift in (rows, columns):
        counts = torch.bincount(shift + 2, minlength=5)
        assert len(counts) == 5
        assert (abs(counts - 1800) < 200).all()  # uniform over -2 .. 2
    assert abs(torch.corrcoef(torch.stack([rows, columns]).float())[0, 1]) < 0.04


# cutout


def test_cutout_is_a_rectangle_of_half_a_side(monkeypatch):
    constant_draws(monkeypatch, below=0.5)
    out = DiffAugment("cutout")(torch.ones(1, 3, 16, 24))
    hole = out[0, 0] == 0
    assert hole.sum() == 8 * 12
    assert hole.any(1).sum() == 8
    assert hole.any(0).sum() == 12
    assert torch.equal(out[:, 0], out[:, 2])


def test_cutout_statistics():
    out = DiffAugment("cutout")(torch.ones(8_000, 1, 16, 16).expand(-1, 3, -1, -1))
    assert set(out.unique().tolist()) == {0.0, 1.0}
    cut = (out[:, 0] == 0).double().mean((1, 2))
    # the centre lies at 0 .. 16: 17 places, cut to 4, 5, .. 8, .. 8, .. 4 of 8 rows
    rows = torch.tensor([min(8, 4 + i, 20 - i) for i in range(17)]).double()
    assert abs(cut.mean() - (rows.mean() / 16) ** 2) < 0.003
    assert cut.max() == 0.25
    assert cut.min() == (4 / 16) ** 2
    middle, corner = (out[:, 0, i, i] == 0 for i in (8, 0))
    assert abs(middle.double().mean() - (8 / 17) ** 2) < 0.02
    assert abs(corner.double().mean() - (5 / 17) ** 2) < 0.02


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_gets_the_same_draws_however_many_ranks_share_it(policy, monkeypatch):
    images = torch.rand(6, 3, 16, 16)
    torch.manual_seed(3)
    whole = [DiffAugment([policy])(images) for _ in range(2)]
    assert not torch.equal(*whole)
    for ranks in (1, 2, 3):
        parts = []
        for rank in range(ranks):
            monkeypatch.setattr(module, "rank_and_size", lambda rank=rank, ranks=ranks: (rank, ranks))
            torch.manual_seed(3)
            parts.append([DiffAugment([policy])(images.chunk(ranks)[rank]) for _ in range(2)])
        for call in range(2):
            torch.testing.assert_close(torch.cat([part[call] for part in parts]), whole[call])


# as the official code has it


def test_official_works_on_zero_to_one(monkeypatch):
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64) * 2 - 1
    constant_draws(monkeypatch, uniform=0.0)
    halved = (images + 1) / 2
    grey = halved.mean(1, keepdim=True) - 0.5
    expected = (0.5 * grey + 0.5 * grey.mean((2, 3), keepdim=True)) * 2 - 1
    torch.testing.assert_close(DiffAugment("color", official=True)(images), expected.expand_as(images))
    constant_draws(monkeypatch, below=0)
    moved = DiffAugment("translation", official=True)(images)
    torch.testing.assert_close(moved, F.pad(images[:, :, :-2, :-3], (3, 0, 2, 0), value=-1.0))  # black


def test_official_brightness_is_twice_as_strong_and_the_hole_is_a_fifth_and_black():
    torch.manual_seed(0)
    images = torch.zeros(20_000, 3, 2, 2, dtype=torch.float64)
    shift = DiffAugment("color", official=True)(images).mean((1, 2, 3))
    assert -1 <= shift.min() < -0.98
    assert 0.98 < shift.max() <= 1
    assert abs(shift.var() - 4 / 12) < 0.01
    out = DiffAugment("cutout", official=True)(torch.zeros(4_000, 3, 20, 30))
    assert set(out.unique().tolist()) == {-1.0, 0.0}
    hole = out[:, 0] == -1
    assert hole.sum((1, 2)).max() == 4 * 6
    # 21 centres of 20 rows and 31 of 30 columns
    rows = torch.tensor([min(4, 2 + i, 22 - i) for i in range(21)]).double().mean() / 20
    columns = torch.tensor([min(6, 3 + i, 33 - i) for i in range(31)]).double().mean() / 30
    assert abs(hole.double().mean() - rows * columns) < 0.001
    assert DiffAugment((), official=True)(images) is images
    assert "official" in repr(DiffAugment("color", official=True))
