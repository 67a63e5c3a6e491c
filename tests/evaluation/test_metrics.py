"""Reconstruction and codebook metrics against scikit-image, numpy and closed forms, in one process and in two."""

import math

import numpy as np
import processes
import pytest
import pytorch_msssim
import torch
import torch.multiprocessing
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from gsqtok.evaluation.metrics import PSNR_CAP, CodebookUsage, ReconstructionMetrics


def to_8_bits(images):
    """(B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3), as a picture is stored."""
    return np.rint((images.clamp(-1, 1).numpy() + 1) * np.float32(127.5)).astype(np.uint8).transpose(0, 2, 3, 1)


def make_pair(batch=4, height=40, width=56, seed=0, noise=0.2):
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.rand(batch, 3, 5, 7, generator=generator) * 2 - 1, (height, width))
    strength = noise * torch.arange(1, batch + 1).view(-1, 1, 1, 1) / batch  # a different error for every picture
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


def test_ms_ssim_equals_pytorch_msssim():
    reconstruction, images = make_pair(height=176, width=208, noise=0.6)
    metrics = ReconstructionMetrics(ms_ssim=True)
    metrics.update(reconstruction, images)
    ours, theirs = (torch.from_numpy(to_8_bits(x)).permute(0, 3, 1, 2).double() for x in (reconstruction, images))
    expected = pytorch_msssim.ms_ssim(ours, theirs, data_range=255, size_average=False)
    torch.testing.assert_close(metrics.last["ms_ssim"], expected, rtol=1e-5, atol=0)  # their window is float32
    assert metrics.compute()["ms_ssim"] == pytest.approx(expected.mean().item(), rel=1e-5)
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


def test_last_holds_the_figures_of_each_picture():
    reconstruction, images = make_pair()
    metrics = ReconstructionMetrics()
    metrics.update(reconstruction, images)
    alone = [measure((reconstruction[i : i + 1], images[i : i + 1])) for i in range(4)]
    for name in ("psnr", "ssim"):
        assert metrics.last[name].tolist() == pytest.approx([figures[name] for figures in alone], rel=1e-12)
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
    metrics(reconstruction[:1], images[:1])  # torchmetrics' forward: gives this batch's figures and adds them
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


def test_identical_pictures_reach_the_cap():
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
def test_pictures_below_the_window_have_no_ssim(height, width):
    result = measure(make_pair(), make_pair(height=height, width=width))
    assert math.isnan(result["ssim"])
    assert math.isfinite(result["psnr"])
    assert result["images"] == 8


def test_smallest_picture_with_ssim_is_one_window():
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
    with pytest.raises(ValueError, match="no pictures"), pytest.warns(UserWarning, match="before"):
        metrics.compute()
    metrics.update(torch.zeros(0, 3, 16, 16), torch.zeros(0, 3, 16, 16))
    with pytest.raises(ValueError, match="no pictures"):
        metrics.compute()
    with pytest.raises(ValueError, match="differ or are not 4-D"):
        metrics.update(torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="differ or are not 4-D"):
        metrics.update(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match="not finite"):
        metrics.update(torch.full((1, 3, 16, 16), math.nan), torch.zeros(1, 3, 16, 16))


# Codebook usage


def usage(indices, codebook_size):
    metric = CodebookUsage(codebook_size, indices.shape[-1])
    metric.update(indices)
    return metric.compute()


def test_usage_equals_numpy():
    rng = np.random.default_rng(0)
    size = 50
    indices = np.minimum(rng.geometric(0.15, (7, 4, 4, 3)), size) - 1
    result = usage(torch.from_numpy(indices), size)

    def perplexity(sample):
        p = np.bincount(sample.ravel(), minlength=size) / sample.size
        p = p[p > 0]
        return np.exp(-np.sum(p * np.log(p)))

    assert result["usage"] == len(np.unique(indices)) / size
    assert result["dead_codes"] == size - len(np.unique(indices))
    assert result["perplexity"] == pytest.approx(perplexity(indices), rel=1e-12)
    assert result["entropy_bits"] == pytest.approx(np.log2(perplexity(indices)), rel=1e-12)
    assert result["positions"] == 7 * 4 * 4
    for group in range(3):
        assert result["usage_per_group"][group] == len(np.unique(indices[..., group])) / size
        assert result["perplexity_per_group"][group] == pytest.approx(perplexity(indices[..., group]), rel=1e-12)


def test_usage_closed_forms():
    size = 64
    every = torch.arange(size)[:, None]
    uniform = usage(every.repeat(3, 2), size)
    assert uniform["perplexity"] == pytest.approx(size, rel=1e-12)
    assert uniform["entropy_bits"] == pytest.approx(6, rel=1e-12)
    assert (uniform["usage"], uniform["dead_codes"]) == (1, 0)

    collapsed = usage(torch.full((10, 1), 63), size)
    assert (collapsed["perplexity"], collapsed["entropy_bits"]) == (1, 0)
    assert math.copysign(1, collapsed["entropy_bits"]) == 1  # not -0.0
    assert (collapsed["usage"], collapsed["dead_codes"]) == (1 / 64, 63)

    # each group keeps to one half: each looks half dead, together they use everything
    halves = torch.cat([every[:32], every[32:]], dim=1)
    split = usage(halves, size)
    assert split["usage_per_group"] == [0.5, 0.5]
    assert split["perplexity_per_group"] == pytest.approx([32, 32], rel=1e-12)
    assert (split["usage"], split["perplexity"]) == (1, pytest.approx(64, rel=1e-12))

    two = usage(torch.tensor([[0], [0], [0], [1]]), 2)  # H(1/4)
    assert two["entropy_bits"] == pytest.approx(2 - 0.75 * math.log2(3), rel=1e-12)


def test_ranked_counts():
    metric = CodebookUsage(5, 2)
    metric.update(torch.tensor([[0, 3], [0, 3], [3, 1]]))
    assert metric.ranked_counts() == [3, 2, 1, 0, 0]
    assert metric.ranked_counts(points=3) == [3, 1, 0]
    large = CodebookUsage(5000)
    large.update(torch.arange(5000).repeat_interleave(torch.arange(5000))[:, None])
    ranked = large.ranked_counts()
    assert len(ranked) == 1024
    assert (ranked[0], ranked[-1]) == (4999, 0)
    assert ranked == sorted(ranked, reverse=True)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.uint8])
def test_usage_batches_shapes_and_integer_types_add_up(dtype):
    indices = torch.randint(0, 100, (6, 2, 3, 4), generator=torch.Generator().manual_seed(0))
    expected = usage(indices, 100)
    metric = CodebookUsage(100, 4)
    metric.update(indices[:2].to(dtype))
    metric.update(indices[2:5].flatten(0, 2).to(dtype))
    metric.update(indices[:0].to(dtype))
    metric.update(indices[5].mT.contiguous().mT.to(dtype))  # not contiguous
    assert metric.compute() == expected


def test_usage_of_a_large_codebook():
    size, groups = 1 << 20, 4
    metric = CodebookUsage(size, groups)
    assert metric.counts.element_size() == 4
    metric.update(torch.arange(size).view(-1, 1).expand(-1, groups))
    metric.update(torch.full((size, groups), size - 1))
    result = metric.compute()
    # one codeword has (size + 1) of 2 size counts, every other has 1
    p = (size + 1) / (2 * size)
    entropy = -p * math.log2(p) + (size - 1) / (2 * size) * math.log2(2 * size)
    assert result["entropy_bits"] == pytest.approx(entropy, rel=1e-12)
    assert result["usage"] == 1


def test_more_positions_than_counts_can_hold_are_refused():
    metric = CodebookUsage(2)
    metric.update(torch.zeros(1, 1, dtype=torch.int64))
    metric.positions += 2**31 - 2
    assert metric.compute()["positions"] == 2**31 - 1
    metric.update(torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(OverflowError, match="2147483648 positions"):
        metric.compute()


def test_usage_bad_input():
    metric = CodebookUsage(8, 2)
    with pytest.raises(ValueError, match="no indices"), pytest.warns(UserWarning, match="before"):
        metric.compute()
    for indices in ([[0, 8]], [[-2, 0]]):
        with pytest.raises(ValueError, match=r"\[0, 8\)"):
            metric.update(torch.tensor(indices))
    for shape in ((3, 1), (4, 3), ()):
        with pytest.raises(ValueError, match=r"\(\.\.\., 2\)"):
            metric.update(torch.zeros(shape, dtype=torch.int64))
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(TypeError, match="integers"):
            metric.update(torch.zeros(3, 2, dtype=dtype))
    assert metric.counts.sum() == 0  # what was refused was not counted
    for size, groups in ((0, 1), (4, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            CodebookUsage(size, groups)


# Two processes

SIZE, GROUPS = 40, 3


def feed(reconstruction_metrics, usage_metric, part):
    reconstruction, images = make_pair(batch=5)
    indices = torch.randint(0, SIZE, (5, 4, 4, GROUPS), generator=torch.Generator().manual_seed(1))
    reconstruction_metrics.update(reconstruction[part], images[part])
    usage_metric.update(indices[part])


def whole_counts():
    whole = CodebookUsage(SIZE, GROUPS)
    feed(ReconstructionMetrics(), whole, slice(None))
    return sorted(whole.counts.sum(0).tolist(), reverse=True)


def process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metrics = ReconstructionMetrics(), CodebookUsage(SIZE, GROUPS)
    feed(*metrics, slice(0, 2) if rank == 0 else slice(2, 5))  # ranks need not see equally many
    results = [metric.compute() for metric in metrics]
    assert metrics[1].ranked_counts() == whole_counts()
    torch.save([results, [metric.compute() for metric in metrics]], f"{folder}/result{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    metrics = ReconstructionMetrics(), CodebookUsage(SIZE, GROUPS)
    feed(*metrics, slice(None))
    expected = [metric.compute() for metric in metrics]
    processes.spawn(process, (str(tmp_path),))
    for rank in range(2):
        for results in torch.load(tmp_path / f"result{rank}.pt"):
            assert results[0] == pytest.approx(expected[0], rel=1e-12)
            assert results[1] == expected[1]  # integers: the same to the last bit
