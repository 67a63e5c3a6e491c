"""Launches beside a stand-in for Triton, which says what it was given; the kernels' own tests launch real ones."""

import pytest
import torch

pytest.importorskip("triton")
from gsqtok.search.launches import Launch, Launches


class Kernel:
    """As a Triton kernel: compiles at a launch, and what is compiled takes addresses, then constants in their order."""

    arg_names = ("x", "n", "temporary", "A", "B")

    def __init__(self):
        self.compiled, self.launched = [], []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.compiled.append((grid, arguments, options))
            return self

        def run(*arguments):
            self.launched.append((grid, arguments))

        return run if len(grid) == 3 else launch


def test_later_calls_launch_what_the_first_compiled():
    kernel = Kernel()
    launch = Launch(kernel, (7,), ("x", 5, "b"), {"B": 2, "A": 1, "num_warps": 4})
    launches = Launches(("x",), {"a": (torch.float16, 3), "b": (torch.float64, 2)}, [launch])
    x = torch.zeros(8, 4)
    launches(x)
    (grid, (first, n, temporary), options), *_ = kernel.compiled
    assert (grid, n, options) == ((7,), 5, {"B": 2, "A": 1, "num_warps": 4})
    assert first is x
    assert (temporary.dtype, len(temporary)) == (torch.float64, 2)
    assert kernel.launched == []
    y = torch.zeros(8, 4)
    launches(y)
    ((grid, (address, n, temporary, a, b)),) = kernel.launched
    assert (grid, address, n, a, b) == ((7, 1, 1), y.data_ptr(), 5, 1, 2)
    assert temporary % 16 == 0
    assert len(kernel.compiled) == 1


def test_what_is_aligned_otherwise_is_compiled_anew():
    kernel = Kernel()
    launches = Launches(("x",), {}, [Launch(kernel, (1,), ("x", 5, "x"), {"A": 1, "B": 2})])
    x = torch.zeros(8)
    for start in (0, 1, 4, 5):
        launches(x[start:])
    assert [given[1][0].data_ptr() for given in kernel.compiled] == [x.data_ptr(), x.data_ptr() + 4]
    assert [arguments[0] for _, arguments in kernel.launched] == [x.data_ptr() + 16, x.data_ptr() + 20]
