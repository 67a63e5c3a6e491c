"""Muon: updates of matrices whose singular values are all alike.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. A convolution's matrix is (out, in x height x width).
torch.optim.Muon takes matrices only, one at a time, and other parameters not at all. Here one launch takes all tensors
of a kind (``torch._foreach_*``, as in torch's own optimizers), and on a GPU a CUDA graph the whole update: else a small
network would wait for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gsqtok.training.graphs import Recorded

MATRIX_RATE = 20.0  # of learning rates: a matrix turns by this much more in a step than AdamW moves a number
CODEBOOK_RATE = 4.0
MOMENTUM = 0.95
RECORDED = 1 << 26  # with more parameters the host is no limit, but a graph keeps some five times their memory
_BY_ADAM = (
    "encoder.conv_in.weight",
    "encoder.conv_out.weight",
    "decoder.conv_out.weight",
)  # colours, latents: no space
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
Tensors = list[Tensor] | tuple[Tensor, ...]
Factor = float | Tensor  # a tensor where the GPU decides whether an update is made


class Muon(Optimizer):
    """Muon for the inner convolutions of a network; AdamW for its ends, norms, biases and the codebook.

    A matrix's update is its momentum (Nesterov) with singular values of about 1, times sqrt(max(1, rows / columns)) and
    ``MATRIX_RATE`` learning rates: at 1e-3 about 2% of freshly drawn weights. A codebook learns ``CODEBOOK_RATE`` times
    faster than the rest.

    Args:
        network: whose parameters are trained.
        lr: learning rate of AdamW's part.
        betas, eps: AdamW's.
        weight_decay: decoupled, of all parameters.
        record: on a GPU, launch updates as one from the second on, if there are not more parameters than ``RECORDED``.

    Attributes:
        found_inf: where it is set, a scalar on the parameters' device: 1 leaves the next update out, without a wait.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        record: bool = True,
    ) -> None:
        matrices, codebooks, others = [], [], []
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.startswith("quantizer."):
                codebooks.append(parameter)
            elif parameter.ndim >= 2 and name not in _BY_ADAM:
                matrices.append(parameter)
            else:
                others.append(parameter)
        groups = [
            {"params": matrices, "matrices": True, "rate": MATRIX_RATE},
            {"params": codebooks, "matrices": False, "rate": CODEBOOK_RATE},
            {"params": others, "matrices": False, "rate": 1.0},
        ]
        shared = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], shared)
        self._recorded = Recorded(self._update)
        self._records = record and sum(p.numel() for p in matrices + codebooks + others) <= RECORDED
        self.register_load_state_dict_post_hook(lambda _: self._taken_up())

    def _taken_up(self) -> None:
        """Forget the graph, which has other state, and move the count of steps, which PyTorch leaves where it was."""
        self._recorded.forget()
        for parameter, state in self.state.items():
            if "step" in state:
                state["step"] = state["step"].to(parameter.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make an update from the gradients; ``closure`` is not for this optimizer."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return
        keep = 1.0 if self.found_inf is None else 1 - self.found_inf
        factors: list[Factor] = [keep, *(group["lr"] for group in self.param_groups)]
        if not (self._records and gradients[0].is_cuda):
            self._update(factors, gradients)
        else:
            device = gradients[0].device
            tensors = [x if isinstance(x, Tensor) else torch.full((), x, device=device) for x in factors]
            self._recorded(tensors, gradients)

    def _update(self, factors: Sequence[Factor], gradients: Sequence[Tensor]) -> None:
        """Update the parameters that have a gradient; ``factors``: whether at all (1 or 0), the learning rates."""
        keep, *rates = factors
        given = iter(gradients)
        for group, rate in zip(self.param_groups, rates, strict=True):
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"] * keep)
            update = self._turned if group["matrices"] else self._scaled
            finite = _finite([*islice(given, len(parameters))])
            _subtract(parameters, update(group, parameters, finite, keep, rate * group["rate"] * keep))

    def _turned(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], keep: Factor, rate: Factor
    ) -> list[Tensor]:
        """Muon's updates; matrices of one shape go through one product."""
        momenta = self._state(parameters, "momentum")
        _approach(momenta, gradients, (1 - MOMENTUM) * keep)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        shapes: dict[torch.Size, list[int]] = {}
        for index, gradient in enumerate(gradients):
            shapes.setdefault(gradient.shape, []).append(index)
        updates: list[Tensor] = list(gradients)
        for shape, indices in shapes.items():
            turned = orthogonal(torch.stack([ahead[i].flatten(1) for i in indices]))
            rows, columns = turned.shape[1:]
            turned = turned * (max(1.0, rows / columns) ** 0.5 * rate)
            for i, update in zip(indices, turned, strict=True):
                updates[i] = update.view(shape)
        return updates

    def _scaled(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], keep: Factor, rate: Factor
    ) -> Tensors:
        """Adam's updates; steps are counted for the whole group."""
        first, second = group["betas"]
        means, squares = self._state(parameters, "exp_avg"), self._state(parameters, "exp_avg_sq")
        state = self.state[group["params"][0]]
        if "step" not in state:
            state["step"] = torch.zeros((), device=gradients[0].device)
        steps = state["step"].add_(keep)
        _approach(means, gradients, (1 - first) * keep)
        _approach(squares, torch._foreach_mul(gradients, gradients), (1 - second) * keep)
        count = steps.clamp_min(1)  # the first update left out would divide zero by zero
        scales = torch._foreach_div(squares, 1 - second**count)
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, group["eps"])
        updates = torch._foreach_div(means, scales)
        torch._foreach_mul_(updates, rate / (1 - first**count))
        return updates

    def _state(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        for parameter in parameters:
            if name not in self.state[parameter]:
                # of the gradients' layout, not the parameter's: one launch takes tensors of one layout
                self.state[parameter][name] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        return [self.state[parameter][name] for parameter in parameters]


def _finite(gradients: list[Tensor]) -> list[Tensor]:
    """Gradients, contiguous, with zeros for what is not finite: it must not reach the state, not even times zero."""
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).nan_to_num_(0, 0, 0)
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]


def _approach(averages: Tensors, values: Tensors, share: Factor) -> None:
    """Move each average by ``share`` of the way to its value, in place."""
    ways = torch._foreach_sub(values, averages)
    torch._foreach_mul_(ways, share)
    torch._foreach_add_(averages, ways)


def _subtract(parameters: list[Tensor], updates: Tensors) -> None:
    """Subtract the updates, which are contiguous; parameters of another layout one by one."""
    together = [i for i, parameter in enumerate(parameters) if parameter.is_contiguous()]
    if together:
        torch._foreach_sub_([parameters[i] for i in together], [updates[i] for i in together])
    for i in set(range(len(parameters))).difference(together):
        parameters[i].sub_(updates[i])


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices with the same singular vectors and singular values between about 0.7 and 1.2, by Newton-Schulz steps.

    Args:
        matrices: (N, rows, columns).
        steps: of the iteration.

    Returns:
        The same shape and type; computed in bfloat16 on a GPU.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32) + 1e-7).to(x.dtype)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)
