import pytest
import torch

from gsqtok.tokens import Layout

GRID = torch.tensor([[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]])  # h = 2, w = 3, G = 2; token = its place


def test_orders():
    assert Layout(2, 12, "interleaved").arrange(GRID).tolist() == list(range(12))
    assert Layout(2, 12, "raster").arrange(GRID).tolist() == [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]
    assert Layout(2, 12, "grid").arrange(GRID) is GRID


def test_vocabularies():
    assert Layout(2, 12, "interleaved", "offset").arrange(GRID).tolist() == [
        *(0, 13, 2, 15, 4, 17, 6, 19, 8, 21, 10, 23),
    ]
    assert Layout(2, 12, vocabulary="offset").vocab_size == 24
    assert Layout(2, 12).vocab_size == 12


@pytest.mark.parametrize("order", ["grid", "interleaved", "raster"])
@pytest.mark.parametrize("vocabulary", ["shared", "offset"])
def test_restore_is_the_inverse(order, vocabulary):
    layout = Layout(3, 50, order, vocabulary)
    grids = torch.randint(50, (5, 4, 2, 3), generator=torch.Generator().manual_seed(0))
    arranged = layout.arrange(grids)
    assert arranged.shape == ((5, 4, 2, 3) if order == "grid" else (5, 24))
    assert 0 <= arranged.min() <= arranged.max() < layout.vocab_size
    assert torch.equal(layout.restore(arranged, (4, 2)), grids)
    assert torch.equal(layout.arrange(grids[0]), arranged[0])


def test_square_grids_need_no_size():
    layout = Layout(2, 9, "raster")
    grid = torch.randint(9, (3, 3, 2))
    assert torch.equal(layout.restore(layout.arrange(grid)), grid)
    with pytest.raises(ValueError, match="no square"):
        layout.restore(torch.zeros(12, dtype=torch.int64))
    with pytest.raises(ValueError, match="do not fill"):
        layout.restore(torch.zeros(12, dtype=torch.int64), (2, 2))


def test_wrong_layouts_and_tokens():
    with pytest.raises(ValueError, match="order"):
        Layout(2, 9, "zigzag")
    with pytest.raises(ValueError, match="vocabulary"):
        Layout(2, 9, vocabulary="joint")
    with pytest.raises(ValueError, match="outside the numbers of its group"):
        Layout(2, 9, "interleaved", "offset").restore(torch.zeros(2, dtype=torch.int64))
