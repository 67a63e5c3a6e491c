"""Quantizers with a codebook by few kernels: called one by one they would wait for the host, which launches fifty."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from gsqtok.search import nearest
from gsqtok.search.launches import kernels_run_on

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


def fusible(latent: Tensor, groups: int) -> bool:
    """Whether the kernels can run on a latent (..., dim), and nobody watches who is to see PyTorch's operations."""
    d = latent.shape[-1] // groups
    return (
        kernels_run_on(latent.device)
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        # the transforms of torch.func and modes that trace hide what they do, and PyTorch offers no other way to see it
        and not (torch._C._are_functorch_transforms_active() or is_in_torch_dispatch_mode())
        and type(latent) is Tensor  # others trace, or lie in shards
        and latent.numel() > 0
        and (1 << (groups - 1).bit_length()) * (1 << (d - 1).bit_length()) <= _LARGEST
    )


def look_up(latent: Tensor, book: Tensor, method: Method) -> LookUp:
    """Quantize as ``Quantizer.forward`` says, with the straight-through gradient.

    Args:
        latent: (..., dim) float32, `fusible`; rows may hold NaN or infinity. The losses are means over all positions,
            to which those without codewords add nothing.
        book: (V, d) float32, or one for each group (G, V, d).
        method: how.
    """
    rows, book = latent.reshape(-1, latent.shape[-1]).contiguous(), book.contiguous()
    if torch.is_grad_enabled() and (rows.requires_grad or book.requires_grad):
        quantized, indices, *losses = _LookUp.apply(rows, book, method)
    else:
        quantized, indices, *losses = _run(rows, book, method, None)[0]
    return LookUp(quantized.view(latent.shape), indices.view(*latent.shape[:-1], method.groups), *losses)


def _run(rows: Tensor, book: Tensor, method: Method, difference: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """The outputs for rows (P, dim), and what the search found; also latents minus codewords, where wanted."""
    from gsqtok.quantizers import fused_triton

    groups, (v, d) = method.groups, book.shape[-2:]
    searched = rows.view(-1, groups, d) if book.ndim == 3 else rows.view(-1, d)
    found = nearest(searched, book, metric="cosine" if method.unit else "euclidean").contiguous()
    outputs = [torch.empty_like(rows), found.new_empty((len(rows), groups)), *(rows.new_empty(()) for _ in range(3))]
    with torch.cuda.device(rows.get_device()):
        launches = fused_triton.forward(len(rows), groups, d, v, book.ndim == 3, *method[1:], difference is not None)
        launches(rows, book, found, outputs[0] if difference is None else difference, *outputs)
    return outputs, found


class _LookUp(torch.autograd.Function):
    """Saves neither outputs, which may be changed in place, nor the codebook, which may move, before `backward`."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, book: Tensor, method: Method) -> tuple[Tensor, ...]:
        difference = torch.empty_like(latent)
        outputs, found = _run(latent, book, method, difference)
        quantized, indices, _, of_book, of_latent = outputs
        ctx.method, ctx.book = method, book.shape
        ctx.save_for_backward(latent, difference, found)
        fixed = [indices]
        if not ctx.needs_input_grad[0]:
            fixed += [quantized, of_latent]
        if not ctx.needs_input_grad[1]:
            fixed.append(of_book)
        ctx.mark_non_differentiable(*fixed)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(
        ctx: Any, quantized: Tensor | None, _: Any, *losses: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        latent, difference, found = ctx.saved_tensors
        learns = ctx.needs_input_grad[1] and (losses[0] is not None or losses[1] is not None)
        with torch.no_grad():
            grad, of_book = _gradients(ctx.method, ctx.book, latent, difference, found, (quantized, *losses), learns)
        if torch.is_grad_enabled():  # as these may be differentiated in turn
            grad = _Once.apply(grad, latent)
            of_book = None if of_book is None else _Once.apply(of_book, latent)
        return grad, of_book, None


def _gradients(
    method: Method, book: torch.Size, latent: Tensor, difference: Tensor, found: Tensor,
    of_outputs: tuple[Tensor | None, ...], learns: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The latents' gradient and, where wanted, the codebook's, from those of the outputs that have one."""
    from gsqtok.quantizers import fused_triton

    grad = torch.empty_like(difference)
    rows, taken = (torch.empty_like(difference), torch.empty_like(found)) if learns else (grad, found)
    given = [difference if of is None else of for of in of_outputs]
    present = tuple(of is not None for of in of_outputs)
    shape = (len(difference), method.groups, book[-1], book[-2], len(book) == 3, *method[1:])
    with torch.cuda.device(difference.get_device()):
        launches = fused_triton.backward(*shape, given[0].stride(), present, learns)
        launches(latent, difference, found, *given, grad, rows, taken)
    if not learns:
        return grad, None
    of_rows = rows.view(-1, book[-1]), taken.view(-1)
    return grad, torch.ops.aten.embedding_dense_backward.default(*of_rows, book[:-1].numel(), -1, False).view(book)


class _Once(torch.autograd.Function):
    """A gradient that depends on latents in a way that nobody can differentiate."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, latent: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise NotImplementedError(
            "a fused quantizer has no second derivative; torch.func.grad takes it, by PyTorch's operations"
        )
