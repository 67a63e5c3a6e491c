"""Reconstruction metrics against scikit-image and closed forms, in one process and in two."""

import math

import numpy as np
import processes
import pytest
import scipy.signal
import torch
import torch.multiprocessing
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from gsqtok.evaluation.metrics import ReconstructionMetrics
from gsqtok.evaluation.similarity import PSNR_CAP


def to_8_bits(images):
    """(B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3), as an image is stored."""
    return np.rint((images.clamp(-1, 1).numpy() + 1) * np.float32(127.5)).astype(np.uint8).transpose(0, 2, 3, 1)


def make_pair(batch=4, height=40, width=56, seed=0, noise=0.2):
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.rand(batch, 3, 5, 7, generator=generator) * 2 - 1, (height, width))
    strength = noise * torch.arange(1, batch + 1).view(-1, 1, 1, 1) / batch  # a different error for every image
    return smooth + strength * torch.randn(smooth.shape, generator=generator), smooth


def measure(*batches):
    metrics = ReconstructionMetrics()
    for batch in batches:
        metrics.update(*batch)
    return metrics.compute()


def test_equals_scikit_image():
    reconstruction, images = make_pair()
    result = measure((reconstruction, images))
    pairs = list(zip(to_8_bits(images), to_8_bits(reconstruction), strict=True))
    assert result["psnr"] == pytest.approx(np.mean([peak_signal_noise_ratio(*p) for p in pairs]), abs=1e-9)
    assert result["mse"] == pytest.approx(np.mean([mean_squared_error(*p) for p in pairs]), abs=1e-9)
    assert result["images"] == 4
    ssim = [
        structural_similarity(
            *p, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for p in pairs
    ]
    # scikit-image leaves the same border of 5 pixels out; it computes in float64 on 8-bit input, as is done here
    assert result["ssim"] == pytest.approx(np.mean(ssim), abs=1e-7)


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
        ours, theirs = (x.reshape(len(x) // 2, 2, -1, 2).mean((1, 3)) if scale < 4 else x for x in (ours, theirs))
    return result


def test_ms_ssim_by_hand():
    reconstruction, images = make_pair(height=176, width=208, noise=0.6)
    metrics = ReconstructionMetrics(ms_ssim=True)
    metrics.update(reconstruction, images)
    stored = [to_8_bits(x).transpose(0, 3, 1, 2).astype(float) for x in (reconstruction, images)]
    expected = np.array(
        [np.mean([ms_ssim_by_hand(*pair) for pair in zip(*each, strict=True)]) for each in zip(*stored, strict=True)]
    )
    assert metrics.last["ms_ssim"].tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    assert metrics.compute()["ms_ssim"] == pytest.approx(expected.mean(), rel=1e-9)
    assert expected.std() > 0.01
    assert "ms_ssim" not in measure((reconstruction, images))
    metrics.update(*make_pair(height=175, width=208))  # the coarsest scale of 10 pixels is below the window
    assert metrics.last["ms_ssim"].isnan().all()
    assert metrics.last["ssim"].isfinite().all()
    metrics.reset()
    metrics.update(*make_pair(batch=1, height=176, width=176))
    assert 0 < metrics.compute()["ms_ssim"] < 1
    metrics.update(images, images)
    assert metrics.last["ms_ssim"].tolist() == pytest.approx([1] * 4, abs=1e-12)


def test_last_holds_the_metrics_of_each_image():
    reconstruction, images = make_pair()
    metrics = ReconstructionMetrics()
    metrics.update(reconstruction, images)
    alone = [measure((reconstruction[i : i + 1], images[i : i + 1])) for i in range(4)]
    for name in ("psnr", "ssim"):
        assert metrics.last[name].tolist() == pytest.approx([one[name] for one in alone], rel=1e-12)
    metrics.update(images[:0], images[:0])
    assert metrics.last["psnr"].shape == (0,)


def test_pooled_psnr_is_of_all_values_together():
    small, large = make_pair(batch=1, height=16, width=16, noise=0.02), make_pair(batch=3, noise=0.5)
    result = measure(small, large)
    errors = np.concatenate(
        [(to_8_bits(a).astype(float) - to_8_bits(b).astype(float)).ravel() ** 2 for a, b in (small, large)]
    )
    assert result["mse"] == pytest.approx(errors.mean(), rel=1e-12)
    assert result["psnr_pooled"] == pytest.approx(10 * np.log10(255**2 / errors.mean()), abs=1e-9)
    assert result["psnr_pooled"] < result["psnr"] - 1


def test_batches_add_up():
    reconstruction, images = make_pair(batch=6)
    whole = measure((reconstruction, images))
    parts = measure((reconstruction[:1], images[:1]), (reconstruction[1:], images[1:]))
    assert parts == pytest.approx(whole, rel=1e-12)
    metrics = ReconstructionMetrics()
    metrics(reconstruction[:1], images[:1])  # torchmetrics' forward: gives this batch's metrics and adds them
    assert metrics(reconstruction[1:], images[1:])["images"] == 5
    assert metrics.compute() == pytest.approx(whole, rel=1e-12)


def test_constant_error_has_a_closed_form():
    images = torch.full((2, 3, 16, 16), 100 / 127.5 - 1)
    result = measure((images + 5 / 127.5, images))
    assert result["mse"] == 25
    assert result["psnr"] == pytest.approx(20 * math.log10(255 / 5), abs=1e-9)
    c1 = (0.01 * 255) ** 2
    assert result["ssim"] == pytest.approx((2 * 100 * 105 + c1) / (100**2 + 105**2 + c1), abs=1e-9)


def test_rounding_to_8_bits_comes_first():
    images = (torch.arange(256).view(1, 1, 16, 16) / 127.5 - 1).expand(1, 3, 16, 16)
    assert measure((images + 0.49 / 127.5, images))["mse"] == 0  # less than half a step
    assert measure((images[..., :8] + 0.51 / 127.5, images[..., :8]))["mse"] == 1
    assert measure((images * 0 + 7, images * 0 + 1))["mse"] == 0  # clamped


def test_identical_images_reach_the_cap():
    _, images = make_pair()
    result = measure((images, images))
    assert result["psnr"] == result["psnr_pooled"] == PSNR_CAP == 100
    assert result["ssim"] == pytest.approx(1, abs=1e-12)
    nearly = images.clone()
    nearly[0, 0, 0, 0] += 0.5
    mixed = measure((nearly, images))
    assert PSNR_CAP * 3 / 4 < mixed["psnr"] < PSNR_CAP
    assert mixed["psnr_pooled"] < PSNR_CAP


@pytest.mark.parametrize(("height", "width"), [(10, 40), (40, 10), (4, 4), (1, 1)])
def test_images_below_the_window_have_no_ssim(height, width):
    result = measure(make_pair(), make_pair(height=height, width=width))
    assert math.isnan(result["ssim"])
    assert math.isfinite(result["psnr"])
    assert result["images"] == 8


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
    assert measure((reconstruction, images))["ssim"] == pytest.approx(expected, abs=1e-7)


def test_autocast_and_half_precision_input_change_nothing():
    pair = tuple(x.bfloat16() for x in make_pair())
    expected = measure(tuple(x.float() for x in pair))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert measure(pair) == expected


def test_reconstruction_bad_input():
    metrics = ReconstructionMetrics()
    with pytest.raises(ValueError, match="no images"), pytest.warns(UserWarning, match="before"):
        metrics.compute()
    metrics.update(torch.zeros(0, 3, 16, 16), torch.zeros(0, 3, 16, 16))
    with pytest.raises(ValueError, match="no images"):
        metrics.compute()
    with pytest.raises(ValueError, match="differ or are not 4-D"):
        metrics.update(torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="differ or are not 4-D"):
        metrics.update(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match="not finite"):
        metrics.update(torch.full((1, 3, 16, 16), math.nan), torch.zeros(1, 3, 16, 16))


# Two processes


def feed(metrics, part):
    reconstruction, images = make_pair(batch=5)
    metrics.update(reconstruction[part], images[part])


def process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metrics = ReconstructionMetrics()
    feed(metrics, slice(0, 2) if rank == 0 else slice(2, 5))  # ranks need not see equally many
    torch.save([metrics.compute(), metrics.compute()], f"{folder}/result{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    metrics = ReconstructionMetrics()
    feed(metrics, slice(None))
    processes.spawn(process, (str(tmp_path),))
    for rank in range(2):
        for result in torch.load(tmp_path / f"result{rank}.pt"):
            assert result == pytest.approx(metrics.compute(), rel=1e-12)
