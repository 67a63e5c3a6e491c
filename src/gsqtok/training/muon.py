"""Muon: updates of matrices whose singular values are all alike.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. A convolution's matrix is (out, in x height x width).
torch.optim.Muon takes matrices only, one at a time, and other parameters not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MATRIX_RATE = 20.0  # of learning rates: a matrix turns by this much more in a step than AdamW moves a number
CODEBOOK_RATE = 4.0
MOMENTUM = 0.95
_BY_ADAM = (
    "encoder.conv_in.weight",
    "encoder.conv_out.weight",
    "decoder.conv_out.weight",
)  # colours, latents: no space
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


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

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make an update from the gradients; ``closure`` is not for this optimizer."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            keep = 1.0 if self.found_inf is None else 1 - self.found_inf
            # what is not finite must not reach the state, not even times zero
            gradients = [parameter.grad.nan_to_num(0, 0, 0) for parameter in parameters]
            rate = group["lr"] * group["rate"] * keep
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"] * keep)
            update = self._turned if group["matrices"] else self._scaled
            for parameter, change in zip(parameters, update(group, parameters, gradients, keep), strict=True):
                parameter.sub_(change * rate)

    def _turned(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], keep: float | Tensor
    ) -> list[Tensor]:
        """Muon's updates, before the learning rate; matrices of one shape go through one product."""
        shapes: dict[torch.Size, list[int]] = {}
        momenta = self._state(parameters, "momentum")
        for index, (momentum, gradient) in enumerate(zip(momenta, gradients, strict=True)):
            momentum.add_((gradient - momentum) * ((1 - MOMENTUM) * keep))
            shapes.setdefault(gradient.shape, []).append(index)
        updates: list[Tensor] = list(gradients)
        for shape, indices in shapes.items():
            stack = torch.stack([gradients[i].lerp(momenta[i], MOMENTUM).flatten(1) for i in indices])
            rows, columns = stack.shape[1:]
            for i, turned in zip(indices, orthogonal(stack), strict=True):
                updates[i] = turned.view(shape) * max(1.0, rows / columns) ** 0.5
        return updates

    def _scaled(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], keep: float | Tensor
    ) -> list[Tensor]:
        """Adam's updates, before the learning rate."""
        first, second = group["betas"]
        means, squares = self._state(parameters, "exp_avg"), self._state(parameters, "exp_avg_sq")
        updates = []
        for parameter, gradient, mean, square in zip(parameters, gradients, means, squares, strict=True):
            steps = self.state[parameter].setdefault("step", torch.zeros((), device=gradient.device))
            steps.add_(keep)
            mean.add_((gradient - mean) * ((1 - first) * keep))
            square.add_((gradient.square() - square) * ((1 - second) * keep))
            # the first update left out would divide zero by zero
            count = steps.clamp_min(1)
            scale = (square / (1 - second**count)).sqrt_().add_(group["eps"])
            updates.append(mean / (1 - first**count) / scale)
        return updates

    def _state(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]


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
