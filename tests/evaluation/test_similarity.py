"""How like its original each image is, against scikit-image, scipy and closed forms."""

import math

import numpy as np
import pytest
import pytorch_msssim
import scipy.signal
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from gsqtok.evaluation.similarity import PSNR_CAP, similarity


def to_8_bits(images):
    """(B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3), as an image is stored."""
    return np.rint((images.clamp(-1, 1).numpy() + 1) * np.float32(127.5)).astype(np.uint8).transpose(0, 2, 3, 1)


def make_pair(batch=4, height=40, width=56, seed=0, noise=0.2):
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.rand(batch, 3, 5, 7, generator=generator) * 2 - 1, (height, width))
    strength = noise * torch.arange(1, batch + 1).view(-1, 1, 1, 1) / batch  # a different error for every image
    return smooth + strength * torch.randn(smooth.shape, generator=generator), smooth


def test_equals_scikit_image():
    reconstruction, images = make_pair()
    result = similarity(reconstruction, images)
    pairs = list(zip(to_8_bits(images), to_8_bits(reconstruction), strict=True))
    assert result["psnr"].tolist() == pytest.approx([peak_signal_noise_ratio(*p) for p in pairs], abs=1e-9)
    errors = [mean_squared_error(*p) * p[0].size for p in pairs]
    assert result["squared_error"].tolist() == pytest.approx(errors, rel=1e-12)
    assert set(result) == {"psnr", "squared_error", "ssim"}
    ssim = [
        structural_similarity(
            *p, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for p in pairs
    ]
    # scikit-image leaves the same border of 5 pixels out; it computes in float64 on 8-bit input, as is done here
    assert result["ssim"].tolist() == pytest.approx(ssim, abs=1e-7)


def ms_ssim_by_hand(ours, theirs):
    """Of one channel in float64 (Wang, Simoncelli, Bovik 2003), with the whole window at once."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(x):
        return scipy.signal.convolve2d(x, window, mode="valid")

    result = 1.0
    for scale, power in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        x, y = mean(ours), mean(theirs)
        covariance = mean(ours * theirs) - x * y
        variances = mean(ours**2) - x**2 + mean(theirs**2) - y**2
        map_ = (2 * covariance + 58.5225) / (variances + 58.5225)  # (0.03 * 255)^2
        if scale == 4:
            map_ *= (2 * x * y + 6.5025) / (x**2 + y**2 + 6.5025)
        result *= max(0, map_.mean()) ** power
        if scale < 4:
            ours, theirs = (halved(x) for x in (ours, theirs))
    return result


def halved(x):
    """The mean of 2 x 2 values, after a line of zeros where a side is odd."""
    x = np.pad(x, [(side % 2, 0) for side in x.shape])
    return x.reshape(len(x) // 2, 2, -1, 2).mean((1, 3))


@pytest.mark.parametrize(("height", "width"), [(176, 208), (177, 191)])
def test_ms_ssim_by_hand(height, width):
    reconstruction, images = make_pair(height=height, width=width, noise=0.6)
    stored = [to_8_bits(x).transpose(0, 3, 1, 2).astype(float) for x in (reconstruction, images)]
    each = zip(*stored, strict=True)
    expected = np.array([np.mean([ms_ssim_by_hand(*pair) for pair in zip(*both, strict=True)]) for both in each])
    assert similarity(reconstruction, images, ms_ssim=True)["ms_ssim"].tolist() == pytest.approx(expected, rel=1e-9)
    assert expected.std() > 0.01


def test_ms_ssim_of_small_odd_and_equal_images():
    small = similarity(*make_pair(height=175, width=208), ms_ssim=True)  # the coarsest scale is below the window
    assert small["ms_ssim"].isnan().all()
    assert small["ssim"].isfinite().all()
    odd = similarity(*make_pair(batch=1, height=176, width=191), ms_ssim=True)
    assert 0 < odd["ms_ssim"].item() < 1
    stored = [torch.from_numpy(to_8_bits(x)).permute(0, 3, 1, 2).double() for x in make_pair(1, 176, 191)]
    library = pytorch_msssim.ms_ssim(*stored, data_range=255).item()  # its window is float32
    assert odd["ms_ssim"].item() == pytest.approx(library, abs=3e-6)
    _, images = make_pair(height=176, width=176)
    assert similarity(images, images, ms_ssim=True)["ms_ssim"].tolist() == pytest.approx([1] * 4, abs=1e-12)


def test_each_image_by_itself():
    reconstruction, images = make_pair()
    together = similarity(reconstruction, images)
    for i in range(4):
        alone = similarity(reconstruction[i : i + 1], images[i : i + 1])
        for name, value in alone.items():
            assert together[name][i].item() == pytest.approx(value.item(), rel=1e-12)


def test_constant_error_has_a_closed_form():
    images = torch.full((2, 3, 16, 16), 100 / 127.5 - 1)
    result = similarity(images + 5 / 127.5, images)
    assert result["squared_error"].tolist() == [25 * 3 * 16 * 16] * 2
    assert result["psnr"].tolist() == pytest.approx([20 * math.log10(255 / 5)] * 2, abs=1e-9)
    c1 = (0.01 * 255) ** 2
    assert result["ssim"].tolist() == pytest.approx([(2 * 100 * 105 + c1) / (100**2 + 105**2 + c1)] * 2, abs=1e-9)


def test_rounding_to_8_bits_comes_first():
    images = (torch.arange(256).view(1, 1, 16, 16) / 127.5 - 1).expand(1, 3, 16, 16)
    assert similarity(images + 0.49 / 127.5, images)["squared_error"] == 0  # less than half a step
    beyond = similarity(images[..., :8] + 0.51 / 127.5, images[..., :8])
    assert beyond["squared_error"] == 3 * 16 * 8
    assert similarity(images * 0 + 7, images * 0 + 1)["squared_error"] == 0  # clamped


def test_identical_images_reach_the_cap():
    _, images = make_pair()
    result = similarity(images, images)
    assert result["psnr"].tolist() == [PSNR_CAP] * 4 == [100] * 4
    assert result["ssim"].tolist() == pytest.approx([1] * 4, abs=1e-12)
    nearly = images.clone()
    nearly[0, 0, 0, 0] += 0.5
    assert PSNR_CAP / 2 < similarity(nearly, images)["psnr"][0] < PSNR_CAP


@pytest.mark.parametrize(("height", "width"), [(10, 40), (40, 10), (4, 4), (1, 1)])
def test_images_below_the_window_have_no_ssim(height, width):
    result = similarity(*make_pair(height=height, width=width))
    assert result["ssim"].isnan().all()
    assert result["psnr"].isfinite().all()


def test_smallest_image_with_ssim_is_one_window():
    reconstruction, images = make_pair(batch=1, height=11, width=11)
    expected = structural_similarity(
        to_8_bits(images)[0],
        to_8_bits(reconstruction)[0],
        channel_axis=-1,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert similarity(reconstruction, images)["ssim"].item() == pytest.approx(expected, abs=1e-7)


def test_autocast_and_half_precision_input_change_nothing():
    pair = tuple(x.bfloat16() for x in make_pair(height=176, width=176))
    expected = similarity(*(x.float() for x in pair), ms_ssim=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name, values in similarity(*pair, ms_ssim=True).items():
            assert torch.equal(values, expected[name])


def test_bad_input():
    with pytest.raises(ValueError, match="differ or are not 4-D"):
        similarity(torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="differ or are not 4-D"):
        similarity(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match="not finite"):
        similarity(torch.full((1, 3, 16, 16), math.nan), torch.zeros(1, 3, 16, 16))
