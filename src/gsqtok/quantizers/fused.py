"""Quantizers with a codebook by few kernels: called one by one they would wait for the host, which launches fifty."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gsqtok.search import nearest

_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
_LARGEST = 2048  # channels of all groups, each padded to a power of two


class Method(NamedTuple):
    """What the kernels have to know of a quantizer.

    Attributes:
        groups: number of groups.
        unit: whether latents are scaled to length 1, and compared by angle; otherwise by distance, as they are.
        book: weight of the codebook loss in the sum.
        latent: weight of the commitment loss in it.
    """

    groups: int
    unit: bool
    book: float
    latent: float


class LookUp(NamedTuple):
    """What a quantizer returns, see `QuantizerOutput`; the codebook and the commitment loss before their weights."""

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    codebook: Tensor
    commitment: Tensor


def look_up(latent: Tensor, book: Tensor, method: Method) -> LookUp | None:
    """Quantize as ``Quantizer.forward`` says, with the straight-through gradient; None where no kernel can.

    Args:
        latent: (..., dim) float32; rows may hold NaN or infinity.
        book: (V, d) float32, or one for each group (G, V, d).
        method: how.
    """
    groups, d = method.groups, book.shape[-1]
    if (
        torch.compiler.is_compiling()  # which fuses by itself
        or not _kernels_run_on(latent.device)
        or type(latent) is not Tensor  # a tensor that only traces or is in shards
        or type(book) not in (Tensor, nn.Parameter)
        or latent.numel() == 0
        or (1 << (groups - 1).bit_length()) * (1 << (d - 1).bit_length()) > _LARGEST
    ):
        return None
    rows = latent.reshape(-1, groups * d).contiguous()
    quantized, indices, *losses = _LookUp.apply(rows, book.contiguous(), method)
    return LookUp(quantized.view(latent.shape), indices.view(*latent.shape[:-1], groups), *losses)


@lru_cache
def _kernels_run_on(device: torch.device) -> bool:
    """Whether there is Triton, and a GPU for it (or its interpreter)."""
    if device.type != ("cpu" if _INTERPRETED else "cuda") or find_spec("triton") is None:
        return False
    return _INTERPRETED or torch.cuda.get_device_capability(device) >= (8, 0)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, book: Tensor, method: Method) -> tuple[Tensor, ...]:
        from gsqtok.quantizers import fused_triton

        groups, unit, *weights = method
        separate, (v, d) = book.ndim == 3, book.shape[-2:]
        rows = latent.view(-1, groups, d) if separate else latent.view(-1, d)
        found = nearest(rows, book, metric="cosine" if unit else "euclidean")
        quantized, indices = torch.empty_like(latent), found.new_empty((len(latent), groups))
        losses = [latent.new_empty(()) for _ in range(3)]
        shape = (len(latent), groups, d, v, separate, unit, *weights)
        with torch.cuda.device(latent.get_device()):
            fused_triton.forward(*shape)(latent, book, found, quantized, indices, *losses)
        ctx.shape, ctx.book = shape, book.shape
        ctx.save_for_backward(latent, quantized, indices)
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        return quantized, indices, *losses

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, quantized: Tensor | None, _: Any, *losses: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        from gsqtok.quantizers import fused_triton

        latent, codewords, indices = ctx.saved_tensors
        learns = ctx.needs_input_grad[1] and (losses[0] is not None or losses[1] is not None)
        grad = torch.empty_like(latent)
        rows, taken = (torch.empty_like(latent), torch.empty_like(indices)) if learns else (grad, indices)
        given = [latent if of is None else of for of in (quantized, *losses)]
        present = tuple(of is not None for of in (quantized, *losses))
        with torch.cuda.device(latent.get_device()):
            launches = fused_triton.backward(*ctx.shape, given[0].stride(), present, learns)
            launches(latent, codewords, indices, *given, grad, rows, taken)
        of_book = None
        if learns:
            d, size = ctx.book[-1], ctx.book[:-1].numel()
            rows = rows.view(-1, d)
            of_book = torch.ops.aten.embedding_dense_backward(rows, taken.view(-1), size, -1, False).view(ctx.book)
        return grad, of_book, None
