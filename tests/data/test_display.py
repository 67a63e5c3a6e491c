"""Grids of images: torchvision's layout, and every pixel of a small image a square."""

import numpy as np
import pytest
import torch
from torchvision.utils import make_grid

from gsqtok.data import to_pil
from gsqtok.data.display import enlarged, enlargement, grid


def test_a_grid_is_torchvision_s():
    images = torch.rand(5, 3, 130, 140, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert np.array_equal(grid(images, 3), to_pil(make_grid(images, 3, padding=2, pad_value=1.0)))


@pytest.mark.parametrize(("short", "times"), [(1, 128), (16, 8), (64, 2), (100, 2), (127, 2), (128, 1), (500, 1)])
def test_small_images_are_enlarged_by_a_whole_number(short, times):
    assert enlargement(short) == times


def test_an_enlarged_pixel_is_a_square():
    image = to_pil(torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    assert np.array_equal(enlarged(image), np.asarray(image).repeat(4, 0).repeat(4, 1))
    large = image.resize((200, 200))
    assert np.array_equal(enlarged(large), large)
