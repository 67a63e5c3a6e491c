"""Triton kernels compiled for GPUs that this machine need not have."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


def launches(module: ModuleType, call: Callable[[], Any], monkeypatch) -> list[tuple[Any, tuple, dict]]:
    """What a call would launch of the module's kernels, none of which runs: kernel, arguments, keywords."""
    seen = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **keywords: seen.append((self.kernel, args, keywords))

    with monkeypatch.context() as patch:
        for name, kernel in vars(module).items():
            if isinstance(kernel, triton.JITFunction):
                patch.setattr(module, name, Recorder(kernel))
        call()
    return seen


def compiled(kernel: Any, args: tuple, keywords: dict, capability: int) -> Any:
    """The kernel as it would be for these arguments, on compute capability 80, 90, ..."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | keywords
    signature, constants, attributes = {}, {}, {}
    for number, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        specialised = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (specialised and value == 1):
            signature[name], constants[(number,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(number,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            if specialised and value % 16 == 0:
                attributes[(number,)] = [["tt.divisibility", 16]]
    options = {name: values[name] for name in OPTIONS if name in values}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
