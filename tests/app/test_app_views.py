"""The images and tables of the page, without a page."""

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from gsqtok.app import views
from gsqtok.app.views import (
    Sheet,
    closer,
    decoded,
    encoded,
    error_map,
    fitted,
    framed,
    look,
    metrics,
    progressive,
    region,
    shrunk,
    swapped,
)
from gsqtok.data import to_pil, to_tensor
from gsqtok.evaluation.report.images import token_colours
from gsqtok.quantizers import quantizer_options
from gsqtok.tokenizer import ImageTokenizer

ALL = (0.0, 0.0, 1.0, 1.0)


def image(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("size", [(640, 480), (33, 7), (5000, 1), (1, 5000), (100, 100)])
def test_shrunk_keeps_to_the_limit_and_the_proportions(size):
    limit = 1000
    new = shrunk(Image.new("RGB", size), limit)
    assert 1 <= new.width * new.height <= limit
    if size[0] * size[1] <= limit:
        assert new.size == size
    elif min(size) > 100:
        assert new.width * new.height > 0.9 * limit
        assert new.width / new.height == pytest.approx(size[0] / size[1], rel=0.05)


def test_look_agrees_with_the_tokenizer_and_counts_the_bytes_of_the_jpeg(tiny_tokenizer):
    original = image(34, 29)
    seen = look(tiny_tokenizer, original, "a")
    assert seen.ours.tokens.shape == (8, 9, 2)
    assert seen.bits == 8 * 9 * 2 * 6  # 64 codewords
    again = tiny_tokenizer.decode(seen.ours.tokens[None], size=(29, 34))[0]
    assert torch.equal(again, seen.ours.reconstruction)
    ours, theirs = metrics(seen, "tiny")
    assert ours[:3] == ["tokens of tiny", "108", f"{864 / (34 * 29):.3f}"]
    assert theirs[0] == "JPEG at its lowest quality"  # the header alone is larger
    assert theirs[1] == f"{seen.jpeg_bits // 8:,}"
    errors = np.asarray(original, float) - np.round((seen.jpeg.movedim(0, -1).numpy() + 1) * 127.5)
    assert float(theirs[3]) == pytest.approx(10 * math.log10(255**2 / (errors**2).mean()), abs=0.01)


def test_error_map_is_the_difference_times_the_gain():
    one, other = image(9, 5, 1), image(9, 5, 2)
    tensors = [torch.from_numpy(np.array(x)).movedim(-1, 0) / 127.5 - 1 for x in (one, other)]
    shown = np.asarray(error_map(*tensors, gain=4)).astype(int)
    difference = np.abs(np.asarray(one, int) - np.asarray(other, int))
    assert np.abs(shown - np.minimum(255, 4 * difference)).max() <= 1


@pytest.mark.parametrize("shape", [(3, 5, 6), (1, 1, 1), (64, 40, 8), (300, 2, 3), (5, 900, 3)])
def test_a_token_is_drawn_where_a_click_finds_it(shape):
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 4096, shape))
    sheet = Sheet(shape)
    pixels = np.asarray(sheet.draw(tokens))
    for row, column, group in [(0, 0, 0), tuple(n - 1 for n in shape), tuple(n // 2 for n in shape)]:
        left, top = sheet.corner(group)
        x, y = left + column * sheet.cell + sheet.cell // 2, top + row * sheet.cell + sheet.cell // 2
        assert sheet.position(x, y) == (row, column, group)
        assert (pixels[y, x] == token_colours(tokens[row, column, group].numpy())).all()
    assert sheet.position(0, 0) is None  # a caption
    assert sheet.position(pixels.shape[1], pixels.shape[0]) is None
    framed = np.asarray(sheet.draw(tokens, (slice(0, 1), slice(0, 1))))
    assert framed.shape == pixels.shape
    assert (framed != pixels).any()


def test_a_frame_surrounds_what_it_frames():
    tokens = torch.zeros(10, 20, 1, dtype=torch.int64)
    sheet = Sheet((10, 20, 1))
    plain, framed = (np.asarray(sheet.draw(tokens, frame)) for frame in (None, (slice(2, 5), slice(3, 9))))
    rows, columns = (plain != framed).any(2).nonzero()
    left, top = sheet.corner(0)
    edges = rows.min() - top, rows.max() - top, columns.min() - left, columns.max() - left
    assert edges == (2 * sheet.cell - 2, 5 * sheet.cell + 1, 3 * sheet.cell - 2, 9 * sheet.cell + 1)
    inside = slice(top + 2 * sheet.cell, top + 5 * sheet.cell), slice(left + 3 * sheet.cell, left + 9 * sheet.cell)
    assert (plain[inside] == framed[inside]).all()


def test_maps_stand_beside_each_other_as_far_as_they_are_legible():
    assert [Sheet((n, n, 8)).columns for n in (1, 28, 73, 256, 512, 1024)] == [4, 4, 4, 4, 2, 1]


@pytest.mark.parametrize(
    ("shape", "position", "rows", "columns"),
    [
        ((256, 300, 8), (128, 150), (112, 144), (134, 166)),
        ((256, 300, 8), (0, 299), (0, 32), (268, 300)),
        ((3, 300, 1), (2, 20), (0, 3), (4, 36)),
    ],
)
def test_a_closer_view_of_small_tokens_holds_the_position(shape, position, rows, columns):
    assert closer(shape, *position) == (slice(*rows), slice(*columns))


def test_there_is_no_closer_view_where_tokens_are_large():
    assert closer((73, 64, 8), 0, 0) is None


def test_a_large_image_goes_in_tiles_with_progress_and_the_same_outcome(tiny_tokenizer, monkeypatch):
    original = image(50, 38)
    whole = look(tiny_tokenizer, original, "a")
    back = decoded(tiny_tokenizer, whole.ours.tokens, original.size)
    monkeypatch.setattr(views, "WHOLE", 50 * 38 - 1)
    monkeypatch.setattr(views, "TILE", 16)
    told = []
    tiles = look(tiny_tokenizer, original, "a", lambda *report: told.append(report))
    assert torch.equal(tiles.ours.tokens, whole.ours.tokens)
    torch.testing.assert_close(tiles.ours.reconstruction, whole.ours.reconstruction, atol=1e-5, rtol=0)
    assert metrics(tiles, "t") == metrics(whole, "t")
    last = {what: (done, total) for what, done, total in told}
    assert list(last) == ["encoding", "decoding"]
    assert all(done == total > 12 for done, total in last.values())
    assert torch.equal(encoded(tiny_tokenizer, original), whole.ours.tokens)
    again = decoded(tiny_tokenizer, whole.ours.tokens, original.size)
    assert np.abs(np.asarray(again, int) - np.asarray(back, int)).max() <= 1
    assert np.abs(np.asarray(again, int) - np.asarray(to_pil(whole.ours.reconstruction), int)).max() <= 1


def test_region_takes_positions_by_their_centres():
    assert region(ALL, (4, 6)) == (slice(0, 4), slice(0, 6))
    assert region((0.5, 0.25, 1.0, 0.75), (4, 6)) == (slice(1, 3), slice(3, 6))
    assert region((1.0, 0.75, 0.5, 0.25), (4, 6)) == (slice(1, 3), slice(3, 6))
    assert region((0.0, 0.0, 0.01, 1.0), (4, 6)) == (slice(0, 4), slice(0, 0))


def test_swapping_moves_the_chosen_tokens_and_nothing_else():
    first, second = torch.zeros(4, 6, 3, dtype=torch.int64), torch.ones(4, 6, 3, dtype=torch.int64)
    a, b = swapped(first, second, [0, 2], (0.0, 0.0, 0.5, 0.5))
    expected = torch.zeros(4, 6, 3, dtype=torch.int64)
    expected[:2, :3, 0] = expected[:2, :3, 2] = 1
    assert torch.equal(a, expected)
    assert torch.equal(b, 1 - expected)
    assert torch.equal(swapped(first, second, [0, 1, 2], ALL)[0], second)
    assert torch.equal(swapped(first, second, [], ALL)[0], first)
    assert not first.any()
    with pytest.raises(ValueError, match="cannot be swapped"):
        swapped(first, second[:3], [0], ALL)
    with pytest.raises(ValueError, match="no group 4"):
        swapped(first, second, [3], ALL)


@pytest.mark.parametrize("size", [(10, 30), (30, 10), (64, 48)])
def test_fitted_covers_the_size_with_the_centre(size):
    image = Image.new("RGB", (64, 48), "black")
    image.paste("white", (31, 0, 33, 48))
    new = np.asarray(fitted(image, size).convert("L")).astype(float)
    assert new.shape == size[::-1]
    assert np.allclose(new, new[:, ::-1], atol=2)
    assert new.max() > 60


def test_framed_draws_inside_and_leaves_the_rest():
    image = Image.new("RGB", (20, 20), "red")
    new = np.asarray(framed(image, (0.75, 0.75, 0.25, 0.25)))
    assert (new[4, 4] == [255, 0, 0]).all()
    assert (new[5, 5] == 0).all()
    assert (new[14, 14] == 0).all()
    assert (new[10, 10] == [255, 0, 0]).all()
    framed(image, (0.5, 0.5, 0.5, 0.5))  # nothing to draw


def test_look_takes_any_image_that_decode_image_gives(tiny_tokenizer):
    file = io.BytesIO()
    Image.new("L", (5, 2), 128).save(file, "PNG")
    from gsqtok.data import decode_image

    seen = look(tiny_tokenizer, decode_image(file.getvalue()), "small")
    assert seen.ours.reconstruction.shape == (3, 2, 5)
    assert math.isnan(seen.ours.ssim)
    assert metrics(seen, "t")[0][-1] == "too small"


def test_progressive_decoding(tiny_config, tiny_tokenizer):
    original = image(34, 29)
    assert progressive(tiny_tokenizer, encoded(tiny_tokenizer, original), to_tensor(original)) == []
    options = quantizer_options("gsq", groups=4, codebook_size=64, nested="uniform")
    tokenizer = ImageTokenizer(dataclasses.replace(tiny_config, quantizer=options)).eval()
    tokens = encoded(tokenizer, original)
    found = progressive(tokenizer, tokens, to_tensor(original))
    for k, (shown, text) in zip((1, 2), found, strict=True):
        assert shown == decoded(tokenizer, tokens[..., :k], original.size)
        error = np.square(np.asarray(shown, np.float64) - np.asarray(original, np.float64)).mean()
        bits = 9 * 8 * k * 6 / (34 * 29)  # positions of 4 x 4 pixels, the last ones padded
        assert text == f"first {k} of 4 groups: {bits:.3f} bits/px, {10 * np.log10(255**2 / error):.2f} dB"
