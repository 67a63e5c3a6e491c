"""What ranks know together; sums over two are tested where they are used, too (tests/contract, tests/evaluation)."""

import processes
import torch

from gsqtok.distributed import mean_over_ranks, on_first, rank_and_size, sum_over_ranks


def test_one_process_is_left_alone():
    x = torch.ones(3, requires_grad=True)
    assert rank_and_size() == (0, 1)
    assert sum_over_ranks(x) is x
    assert mean_over_ranks(x) is x
    assert on_first(3, sum) == 3


def run_rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    x = torch.tensor([1.0 + rank, 5.0], requires_grad=True)
    total, mean = sum_over_ranks(x), mean_over_ranks(x)
    (gradient,) = torch.autograd.grad(mean.square().sum(), x)
    errors = []
    try:
        on_first(rank, lambda parts: 1 / parts[0])
    except ZeroDivisionError as error:
        errors.append(str(error))
    found = [rank_and_size(), total.tolist(), mean.tolist(), gradient.tolist(), on_first(rank + 1, sum), errors]
    torch.save(found, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    processes.spawn(run_rank, (str(tmp_path),))
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        # d mean^2 / dx of this rank's own part: twice the mean
        assert found == [(rank, 2), [3.0, 10.0], [1.5, 5.0], [3.0, 10.0], 3, ["division by zero"]]
