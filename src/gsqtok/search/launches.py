"""Triton kernels launched one after the other, in less of the host's time than the GPU takes.

`kernel[grid](...)` finds out at every call which compiled kernel fits its arguments, and temporary arrays are allocated
one by one. For calls whose arguments differ in their addresses alone both are done once.
"""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

Compiled = tuple[Callable[..., None], list[Any], list[tuple[int, int]]]
ALIGNMENT = 256  # bytes between the starts of arrays: more than any kernel is compiled for
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


@lru_cache
def kernels_run_on(device: torch.device) -> bool:
    """Whether there is Triton, and a GPU for it (or its interpreter)."""
    if device.type != ("cpu" if _INTERPRETED else "cuda") or find_spec("triton") is None:
        return False
    return _INTERPRETED or torch.cuda.get_device_capability(device) >= (8, 0)


class Launch(NamedTuple):
    """A kernel, its grid, its arguments in order, a pointer by its name, then those by keyword and Triton's options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Sequence[str | int | float]
    options: dict[str, Any]


class Launches:
    """Kernels that share arrays, of which all but the given ones exist only while they run.

    Args:
        given: names of the tensors that a call gets. Their dtypes and strides must always be those of the first call,
            since what Triton compiles depends on them.
        arrays: dtype and number of elements of the other arrays by name.
        launches: the kernels in order.
    """

    def __init__(self, given: Sequence[str], arrays: dict[str, tuple[torch.dtype, int]], launches: Sequence[Launch]):
        self._arrays, self._launches = arrays, launches
        self._offsets, self._bytes = [], 0
        for dtype, elements in arrays.values():
            self._offsets.append(self._bytes)
            self._bytes += -(-max(1, elements * dtype.itemsize) // ALIGNMENT) * ALIGNMENT
        self._number = {name: number for number, name in enumerate([*given, *arrays])}
        self._compiled: dict[tuple[int, ...], list[Compiled]] = {}

    def __call__(self, *given: Tensor) -> None:
        """Launch them with these tensors, on the current stream of the current device, which must be theirs."""
        workspace = given[0].new_empty(self._bytes, dtype=torch.uint8)
        pointers = [tensor.data_ptr() for tensor in given]
        kind = (given[0].get_device(), *[pointer & 15 for pointer in pointers])
        compiled = self._compiled.get(kind)
        if not compiled:
            self._compiled[kind] = self._first(workspace, given)
            return
        base = workspace.data_ptr()
        pointers += [base + offset for offset in self._offsets]
        for launch, arguments, places in compiled:
            filled = arguments.copy()  # other threads may be here
            for place, number in places:
                filled[place] = pointers[number]
            launch(*filled)

    def _first(self, workspace: Tensor, given: Sequence[Tensor]) -> list[Compiled]:
        """Launch them as Triton does, and return what it compiled."""
        arrays = zip(self._offsets, self._arrays.values(), strict=True)
        tensors = [*given, *(workspace[at : at + n * dtype.itemsize].view(dtype) for at, (dtype, n) in arrays)]
        found: list[Compiled] = []
        for kernel, grid, arguments, options in self._launches:
            values = [tensors[self._number[value]] if isinstance(value, str) else value for value in arguments]
            compiled = kernel[grid](*values, **options)
            if compiled is None:  # the interpreter compiles nothing
                continue
            places = [(i, self._number[value]) for i, value in enumerate(arguments) if isinstance(value, str)]
            rest = [options[name] for name in kernel.arg_names[len(arguments) :]]
            found.append((compiled[(*grid, 1, 1)[:3]], [*arguments, *rest], places))
        return found
