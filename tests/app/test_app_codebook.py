"""Neighbours in the codebook, against a search written out; plots that are drawn for every kind of quantizer."""

import numpy as np
import pytest
import torch

from gsqtok.app.codebook import directions, nearest_angles, neighbours, sphere_plot, usage_plot
from gsqtok.quantizers import build_quantizer


def test_neighbours_are_those_of_the_codebook():
    quantizer = build_quantizer("gsq", dim=12, groups=3, codebook_size=3000)
    tokens = torch.tensor([5, 2999, 17])
    codebook = quantizer.codebook.detach().double().numpy()
    for which in range(3):
        distance = np.linalg.norm(codebook - codebook[tokens[which]], axis=1)
        order = np.argsort(distance)
        assert order[0] == tokens[which]
        found = neighbours(quantizer, tokens, which, nearest=4)
        assert [index for index, _ in found] == order[1:5].tolist()
        assert [d for _, d in found] == pytest.approx(distance[order[1:5]].tolist(), rel=1e-5)


def test_neighbours_of_a_lattice_and_of_residual_stages():
    fsq = build_quantizer("fsq", dim=2, levels=[5, 5])
    found = neighbours(fsq, torch.tensor([12]), 0, nearest=4)  # the middle of 5 x 5
    assert {index for index, _ in found} == {7, 11, 13, 17}
    assert {distance for _, distance in found} == {0.5}
    rvq = build_quantizer("rvq", dim=4, stages=2, codebook_size=16)
    second = rvq.quantizers[1].codebook.detach().double()
    expected = (second - second[3]).norm(dim=1).argsort()[1:3].tolist()
    assert [index for index, _ in neighbours(rvq, torch.tensor([1, 3]), 1, nearest=2)] == expected


def test_two_codewords_have_one_neighbour_and_a_float_has_none():
    assert len(neighbours(build_quantizer("gsq", dim=2, codebook_size=2), torch.tensor([1]), 0)) == 1
    with pytest.raises(ValueError, match="4,294,967,296"):
        neighbours(build_quantizer("identity", dim=3), torch.tensor([0, 0, 0]), 0)


def test_nearest_angles_of_a_regular_polygon():
    angles = torch.arange(1500, dtype=torch.float64) * (2 * torch.pi / 1500)
    points = torch.stack([angles.cos(), angles.sin()], 1)
    assert nearest_angles(points).numpy() == pytest.approx(np.full(1500, 360 / 1500), abs=1e-4)


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_every_dimension_has_a_plot(d):
    pytest.importorskip("matplotlib")
    quantizer = build_quantizer("gsq", dim=2 * d, groups=2, codebook_size=50)
    tokens = torch.randint(0, 50, (4, 5, 2))
    plots = [sphere_plot(quantizer), sphere_plot(quantizer, tokens), usage_plot(tokens, 50)]
    for plot in plots:
        assert plot.mode == "RGB"
        assert len(np.unique(np.asarray(plot))) > 20
    assert directions(quantizer).norm(dim=1).numpy() == pytest.approx(np.ones(50)) or d == 1
    if d < 4:  # the used codewords are blue
        assert np.asarray(plots[0]).tobytes() != np.asarray(plots[1]).tobytes()


def test_without_a_codebook_there_is_no_image_of_it():
    assert sphere_plot(build_quantizer("lfq", dim=8)) is None


@pytest.mark.parametrize("groups", [1, 2, 8, 24])
def test_every_group_has_a_colour_of_its_own_and_a_name_in_the_legend(groups, monkeypatch):
    shown = []
    monkeypatch.setattr("gsqtok.app.codebook._image", shown.append)
    usage_plot(torch.randint(50, (4, 4, groups)), 50)
    axes = shown[0].axes[0]
    lines = [line for line in axes.lines if line.get_label().startswith("group ")]
    assert len({line.get_color() for line in lines}) == groups
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"group {g + 1}" for g in range(groups)]
