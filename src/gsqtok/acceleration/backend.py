"""The encoder and the decoder, block by block, by the operators of a backend: fused kernels, or those for a CPU.

A backend computes what it knows: blocks and parts of `gsqtok.networks` as they were built. Whatever else it meets (a
hook, an adapter around a convolution, `weight_norm`, another norm or stem) is called as the network itself would call
it, and the bias that a convolution may leave to the block behind it is added before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from gsqtok.acceleration.cpu import group_norm
from gsqtok.acceleration.recompute import RecomputedBlock, recomputed
from gsqtok.networks import Decoder, Encoder
from gsqtok.networks.blocks import (
    AdaptiveGroupNorm,
    Attention,
    DepthToSpaceUpsample,
    Downsample,
    GroupNorm,
    NearestUpsample,
    ResidualBlock,
)

Network = Encoder | Decoder
Shifted = tuple[Tensor, Tensor | None]  # a feature map (B, C, H, W), and what is still to be added: (C,)

_THREE, _ONE = (3, 3), (1, 1)  # convolutions, by their kernel
_RESIDUAL = tuple((GroupNorm, _THREE, GroupNorm, _THREE, skip) for skip in (nn.Identity, _ONE))
# What a known block is made of, one way or another, and of what class the parameters of its parts are.
_BLOCKS: dict[type[nn.Module], tuple[tuple[object, ...], ...]] = {
    **dict.fromkeys((ResidualBlock, RecomputedBlock), _RESIDUAL),
    **dict.fromkeys((Downsample, NearestUpsample, DepthToSpaceUpsample), ((_THREE,),)),
    Attention: ((GroupNorm, _ONE, _ONE),),
    AdaptiveGroupNorm: ((nn.GroupNorm, nn.Linear, nn.Linear),),
    GroupNorm: ((),),
}
_PARTS: dict[type[nn.Module], frozenset[type]] = {
    **dict.fromkeys((nn.Conv2d, nn.Linear, GroupNorm), frozenset({nn.Parameter})),
    nn.GroupNorm: frozenset({type(None)}),
    nn.Identity: frozenset(),
}


def unchanged(module: nn.Module) -> bool:
    """Whether a call of the module runs its class's ``forward`` and nothing beside it: no hook, none of its own."""
    state = module.__dict__
    hooked = state["_forward_hooks"] or state["_forward_pre_hooks"]
    return not (hooked or state["_backward_hooks"] or state["_backward_pre_hooks"] or "forward" in state)


def hooked_everywhere() -> bool:
    """Whether there are hooks of all modules at once, which PyTorch offers no other way to see."""
    m = torch_module
    forward = m._global_forward_hooks or m._global_forward_pre_hooks
    return bool(forward or m._global_backward_hooks or m._global_backward_pre_hooks)


def known(block: nn.Module, kind: type[nn.Module] | None = None) -> bool:
    """Whether the block computes what `gsqtok.networks` built it for, from its own parameters.

    ``kind`` is what it was before it was accelerated; None for the block of an accelerated network, which stays plain.
    Adapters and parametrizations change the class of a part; pruning and the old ``weight_norm`` set hooks; sharding
    and ``functional_call`` change the class of parameters.
    """
    kinds = tuple(map(kind_of, block.__dict__["_modules"].values()))
    return kinds in _BLOCKS.get(kind or type(block), ()) and unchanged(block)


def kind_of(part: nn.Module) -> object:
    """The class of a part of a block, the kernel of a convolution; None where it has been changed."""
    kind, state = type(part), part.__dict__
    if not unchanged(part) or frozenset(map(type, state["_parameters"].values())) != _PARTS.get(kind):
        return None
    if kind is not nn.Conv2d:
        return kind
    usual = state["padding_mode"] == "zeros" and state["groups"] == 1 and state["dilation"] == (1, 1)
    return state["kernel_size"] if usual else None


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def settled(x: Tensor, shift: Tensor | None) -> Tensor:
    """X with its shift added."""
    return x if shift is None else x + shift.to(x.dtype)[:, None, None]


def folded(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) -> (O, I, 4, 4): what a convolution after repetition to 2x2 pixels is before it.

    The three rows that the upper pixel of a pair sees are repetitions of two: the row above, and twice its own. The
    lower pixel sees twice its own, and the row below. So rows 0 and 2 of the result are those of the upper pixel, 1 and
    3 those of the lower one; likewise columns. 4 of 9 products are left, and nothing is repeated.
    """
    weight = F.pad(weight.to(torch.promote_types(weight.dtype, torch.float32)), (1, 1, 1, 1))
    weight = weight[:, :, 1:] + weight[:, :, :-1]
    return weight[..., 1:] + weight[..., :-1]


class Norm(NamedTuple):
    """A group norm, and whether SiLU follows; weight and bias (C,), or (B, C) for each image's own."""

    weight: Tensor
    bias: Tensor
    groups: int
    eps: float
    silu: bool = False


class Backend:
    """Runs networks by PyTorch's operators with channels innermost, without gradient: what is fastest on a CPU."""

    def prepare(self, x: Tensor) -> Tensor | None:
        """X as the operators take it; None where they cannot, or nothing is gained."""
        return x.contiguous(memory_format=torch.channels_last) if x.shape[2] * x.shape[3] > 1 else None

    def plain(self, x: Tensor) -> Tensor:
        """X as the network's own blocks take it best: PyTorch's group norm is exact with channels outermost."""
        return x.contiguous()

    def convolve(self, conv: nn.Conv2d, x: Tensor) -> Shifted:
        """A convolution, which may leave its bias to what follows."""
        return conv(x), None

    def normalise(self, x: Tensor, norm: Norm, shift: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The norm of x + shift, computed in float32 at the least, in a type."""
        weight, bias, groups, eps, silu = norm
        precise = torch.promote_types(weight.dtype, torch.float32)
        out = group_norm(settled(x, shift).to(precise), groups, weight.to(precise), bias.to(precise), eps)
        return (F.silu(out, inplace=True) if silu else out).to(dtype)

    def add(self, x: Tensor, y: Tensor, shift: Tensor | None) -> Tensor:
        """x + y + shift; y is not needed any more."""
        return settled(y.add_(x) if x.dtype == y.dtype else x + y, shift)

    def repeat(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A 3x3 convolution after repetition to twice the height and width."""
        weight = folded(conv.weight).flip(2, 3).transpose(0, 1).to(conv.weight.dtype)
        return F.conv_transpose2d(x, weight, conv.bias, stride=2, padding=1)

    def interleave(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A convolution whose channels become the pixels of 2x2 blocks."""
        x = conv(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        x = x.reshape(b, h, w, 2, 2, c // 4).transpose(2, 3).reshape(b, 2 * h, 2 * w, c // 4)
        return x.permute(0, 3, 1, 2)

    def run(self, network: Network, given: Tensor) -> Tensor:
        """``network(given)``."""
        x, shift = self.enter(network.conv_in, given)
        for block in network.blocks:
            stage, ready = _STAGES.get(type(block)), self.prepare(x)
            if stage is not None and ready is not None and known(block):
                x, shift = stage(self, block, ready, shift, given)
                continue
            x = self.plain(settled(x, shift))
            x, shift = block(x, given) if isinstance(block, AdaptiveGroupNorm) else block(x), None
        return self.leave(network, x, shift)

    def alone(self, block: nn.Module, kind: type[nn.Module], plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``plain(x)`` of a block of this kind, in whatever network it stands."""
        ready = self.prepare(x)
        if ready is None or not known(block, kind):
            return plain(self.plain(x))
        return settled(*_STAGES[kind](self, block, ready, None, x))

    def enter(self, conv: nn.Module, x: Tensor) -> Shifted:
        """The first convolution."""
        ready = self.prepare(x)
        if ready is not None and kind_of(conv) in (_THREE, _ONE):
            return self.convolve(cast(nn.Conv2d, conv), ready)
        return conv(self.plain(x)), None

    def leave(self, network: Network, x: Tensor, shift: Tensor | None) -> Tensor:
        """The last norm and the last convolution, in the type of its weights."""
        norm, conv, ready = network.norm_out, network.conv_out, self.prepare(x)
        dtype = conv.weight.dtype
        if ready is None or kind_of(norm) is not GroupNorm:
            x = norm(self.plain(settled(x, shift)).to(dtype))
        else:
            x = self._norm(norm, ready, shift, x.dtype if torch.is_autocast_enabled(x.device.type) else dtype)
        return conv(x)

    def _norm(self, norm: GroupNorm, x: Tensor, shift: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        parameters = Norm(norm.weight, norm.bias, norm.num_groups, norm.eps, norm.silu)
        return self.normalise(x, parameters, shift, dtype or x.dtype)

    def _residual(self, block: ResidualBlock, x: Tensor, shift: Tensor | None, given: Tensor) -> Shifted:
        h, bias = self.convolve(block.conv1, self._norm(block.norm1, x, shift))
        h, bias = self.convolve(block.conv2, self._norm(block.norm2, h, bias))
        if isinstance(block.skip, nn.Conv2d):
            moved = None if shift is None else block.skip.weight.flatten(1) @ shift
            x, shift = self.convolve(block.skip, x)
            shift = _sum(shift, moved)
        return self.add(x, h, _sum(bias, shift)), None

    def _attention(self, block: Attention, x: Tensor, shift: Tensor | None, given: Tensor) -> Shifted:
        x = settled(x, shift)
        return x + block.attend(self._norm(block.norm, x, None)), None

    def _adaptive(self, block: AdaptiveGroupNorm, x: Tensor, shift: Tensor | None, given: Tensor) -> Shifted:
        norm = Norm(*block.factors(given), block.norm.num_groups, block.norm.eps)
        return self.normalise(x, norm, shift, x.dtype), None


_STAGES: dict[type[nn.Module], Callable[..., Shifted]] = {
    ResidualBlock: Backend._residual,
    RecomputedBlock: lambda self, *inputs: recomputed(self._residual, *inputs),
    Attention: Backend._attention,
    GroupNorm: lambda self, norm, x, shift, _: (self._norm(norm, x, shift), None),
    AdaptiveGroupNorm: Backend._adaptive,
    Downsample: lambda self, block, x, shift, _: self.convolve(block.conv, settled(x, shift)),
    NearestUpsample: lambda self, block, x, shift, _: (self.repeat(block.conv, settled(x, shift)), None),
    DepthToSpaceUpsample: lambda self, block, x, shift, _: (self.interleave(block.conv, settled(x, shift)), None),
}
