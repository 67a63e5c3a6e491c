"""A tokenizer of which each rank keeps a share: fully sharded data parallelism.

Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023, arXiv 2304.11277, by torch's
``fully_shard``. Accelerate's plugin would convert the codebook to bfloat16, shards one network a run, knows no CPU, and
writes checkpoints that only the same number of its own ranks can read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from gsqtok.tokenizer import ImageTokenizer

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(tokenizer: ImageTokenizer) -> None:
    """Leave each rank its share of the parameters, in place; what is averaged or optimised by them is shared out, too.

    A block's parameters come together for its forward pass and again for its backward pass; gradients are averaged over
    the ranks. Values are those of DistributedDataParallel up to rounding: parameters stay float32. Buffers stay whole.

    ``state_dict()`` gathers whole tensors, on the CPU, so all ranks must call it; ``load_state_dict`` takes whole ones.
    Both are therefore those of the tokenizer before. Only ``forward`` may be called, not ``encode`` or ``decode``.

    Args:
        tokenizer: with its weights on the rank's device, contiguous, the same on all ranks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing here is changed in place
    mesh = init_device_mesh(tokenizer.device.type, (distributed.get_world_size(),))
    for network in (tokenizer.encoder, tokenizer.decoder):
        for block in network.blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(tokenizer, mesh=mesh)
    tokenizer.register_state_dict_post_hook(_gather_weights)
    tokenizer.register_load_state_dict_pre_hook(_share_out_weights)


def _is_shared(tensor: Tensor) -> bool:
    """Whether ranks share it out: whether it is a ``DTensor``, whose class takes seconds to import."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This rank's share, in the same memory; a whole tensor itself."""
    return tensor.to_local() if _is_shared(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor gathered from all ranks, which must all call this; a whole tensor itself."""
    return tensor.full_tensor() if _is_shared(tensor) else tensor


@contextmanager
def whole_state(optimizer: Optimizer) -> Iterator[None]:
    """Inside, ``optimizer.state_dict()`` holds whole tensors; all ranks must enter.

    They are gathered on entering: where a rank then fails at writing them, none waits for it.
    """
    state = optimizer.state_dict()
    state["state"] = {
        number: {name: _gathered(value) if _is_shared(value) else value for name, value in values.items()}
        for number, values in state["state"].items()
    }
    hook = optimizer.register_state_dict_post_hook(lambda _, __: state)
    try:
        yield
    finally:
        hook.remove()


def take_whole_state(optimizer: Optimizer) -> None:
    """Let ``optimizer.load_state_dict`` take whole tensors, for parameters that are shared out and for others.

    They may lie otherwise in memory than the parameters; a fused optimizer needs its state to lie as they do.
    """
    optimizer.register_load_state_dict_pre_hook(_share_out_state)


def _gather_weights(tokenizer: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name, value in state.items():
        if name.startswith(prefix) and _is_shared(value):
            state[name] = _gathered(value)


def _gathered(value: DTensor) -> Tensor:
    # a copy: what was gathered may lie in a larger block of memory, which would be saved with it
    return whole(value).to("cpu", copy=True)


def _share_out_weights(tokenizer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, parameter in tokenizer.named_parameters():
        if prefix + name in state:  # what is missing is named by torch
            state[prefix + name] = _share_out(state[prefix + name], parameter)


def _share_out_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shared = {
        number: {
            name: _share_out(value, parameter) if value.shape == parameter.shape else value
            for name, value in state["state"][number].items()
        }
        for number, parameter in zip(numbers, parameters, strict=True)
        if number in state["state"]
    }
    return state | {"state": shared}


def _share_out(value: Tensor, parameter: Tensor) -> Tensor:
    if _is_shared(parameter):  # this rank's part of what every rank has read
        from torch.distributed.tensor import distribute_tensor

        value = value.to(parameter.device, memory_format=torch.contiguous_format)
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return torch.empty_like(parameter).copy_(value)  # else the part would keep the whole in memory
