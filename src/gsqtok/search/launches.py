"""Triton kernels launched one after the other, in less of the host's time than the GPU takes.

`kernel[grid](...)` finds out at every call which compiled kernel fits its arguments, and temporary arrays are allocated
one by one. For calls whose arguments differ in their addresses alone both are done once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ALIGNMENT = 256  # bytes between the starts of arrays: more than any kernel is compiled for


class Launch(NamedTuple):
    """A kernel, its grid, its arguments in order, a pointer by its name, then those by keyword and Triton's options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Sequence[str | int | float]
    options: dict[str, Any]


class Launches:
    """Kernels that share arrays, of which all but the given ones exist only while they run.

    Args:
        given: names of the tensors that a call gets. Their dtypes, strides and alignment to 16 bytes must always be
            those of the first call, all on one device: what Triton compiles depends on them.
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
        self._ready: list[tuple[Callable[..., None], list[Any], list[tuple[int, int]]]] = []

    def __call__(self, *given: Tensor) -> None:
        """Launch them with these tensors, on the current device and stream."""
        workspace = torch.empty(self._bytes, dtype=torch.uint8, device=given[0].device)
        if not self._ready:
            self._first(workspace, given)
            return
        base = workspace.data_ptr()
        pointers = [tensor.data_ptr() for tensor in given] + [base + offset for offset in self._offsets]
        for launch, arguments, places in self._ready:
            for place, number in places:
                arguments[place] = pointers[number]
            launch(*arguments)

    def _first(self, workspace: Tensor, given: Sequence[Tensor]) -> None:
        """Launch them as Triton does, and keep what it compiled; the interpreter compiles nothing."""
        arrays = zip(self._offsets, self._arrays.values(), strict=True)
        tensors = [*given, *(workspace[at : at + n * dtype.itemsize].view(dtype) for at, (dtype, n) in arrays)]
        ready = []
        for kernel, grid, arguments, options in self._launches:
            values = [tensors[self._number[value]] if isinstance(value, str) else value for value in arguments]
            compiled = kernel[grid](*values, **options)
            if compiled is not None:
                places = [(i, self._number[value]) for i, value in enumerate(arguments) if isinstance(value, str)]
                rest = [options[name] for name in kernel.arg_names[len(arguments) :]]
                full = (*grid, 1, 1)[:3]
                ready.append((compiled[full], [*arguments, *rest], places))
        if len(ready) == len(self._launches):
            self._ready = ready
