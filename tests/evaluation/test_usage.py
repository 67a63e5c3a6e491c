"""Codebook usage against numpy and closed forms, in one process and in two."""

import math

import numpy as np
import processes
import pytest
import torch
import torch.multiprocessing

from gsqtok.evaluation.usage import CodebookUsage


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


def test_groups_that_are_left_out_do_not_count():
    metric = CodebookUsage(8, 3)
    metric.update(torch.tensor([[0, 1, 1], [5, -1, -1], [1, 0, -1], [-1, -1, -1]]))
    found = metric.compute()
    assert (found["positions"], found["tokens"]) == (3, 6)  # the last is of a latent that is not finite
    assert metric.counts.tolist() == [[1, 1, 0, 0, 0, 1, 0, 0], [1, 1] + 6 * [0], [0, 1] + 6 * [0]]
    assert found["usage"] == 3 / 8
    assert found["entropy_bits"] == pytest.approx(
        -(1 / 3 * math.log2(1 / 3) + 1 / 2 * math.log2(1 / 2) - math.log2(6) / 6)
    )


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
    with pytest.raises(ValueError, match="no indices"):
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


def test_state_dict_holds_the_counts_and_reset_begins_anew():
    metric = CodebookUsage(8, 2)
    metric.update(torch.tensor([[0, 1], [2, 3]]))
    other = CodebookUsage(8, 2)
    other.load_state_dict(metric.state_dict())
    assert set(metric.state_dict()) == {"counts", "positions"}
    assert other.compute() == metric.compute()
    metric.reset()
    assert other.compute()["positions"] == 2
    metric.update(torch.tensor([[7, 7]]))
    assert metric.compute() == usage(torch.tensor([[7, 7]]), 8)


# Two processes

SIZE, GROUPS = 40, 3


def feed(metric, part):
    indices = torch.randint(0, SIZE, (5, 4, 4, GROUPS), generator=torch.Generator().manual_seed(1))
    metric.update(indices[part])


def whole():
    metric = CodebookUsage(SIZE, GROUPS)
    feed(metric, slice(None))
    return metric


def process(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metric = CodebookUsage(SIZE, GROUPS)
    feed(metric, slice(0, 2) if rank == 0 else slice(2, 5))  # ranks need not see equally many
    own, result = metric.counts.clone(), metric.compute()
    assert metric.ranked_counts() == sorted(whole().counts.sum(0).tolist(), reverse=True)
    assert torch.equal(metric.counts, own)  # what all have seen together is not added to what one has seen
    torch.save([result, metric.compute()], f"{folder}/result{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    expected = whole().compute()
    processes.spawn(process, (str(tmp_path),))
    for rank in range(2):
        assert torch.load(tmp_path / f"result{rank}.pt") == [expected] * 2  # integers: the same to the last bit
