"""Muon: momentum whose update of each weight matrix is made orthogonal; Adam for all that is no matrix.

torch's own takes matrices only, not the kernels of convolutions, and works in bfloat16, which CPUs without it emulate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


class Muon(Optimizer):
    """Updates kernels and matrices by orthogonalised momentum, vectors (biases, norms) by Adam.

    A kernel (out, in, kh, kw) is the matrix (out, in kh kw). Each update has the size in root mean square that Adam's
    has, so that rates and decay are those of AdamW.

    Args:
        params: to be trained, or groups of them.
        lr: learning rate.
        momentum: of the matrices, in Nesterov's form.
        betas, eps: Adam's, of the vectors.
        weight_decay: decoupled, of both.

    Source: Jordan et al., Muon (2024); size of the update: Liu et al., Muon is Scalable for LLM Training (2025).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                make_update = matrix_update if parameter.ndim > 1 else vector_update
                parameter.add_(make_update(parameter.grad, self.state[parameter], group), alpha=-group["lr"])
        return loss


def matrix_update(gradient: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
    """Returns what a learning rate of 1 subtracts from a matrix or kernel; moves `state` on."""
    if not state:
        state["mean"] = torch.zeros_like(gradient)
    mean = state["mean"].lerp_(gradient, 1 - options["momentum"])
    ahead = gradient.lerp(mean, options["momentum"])
    matrix = orthogonalised(ahead.flatten(1))
    return 0.2 * math.sqrt(max(matrix.shape)) * matrix.view(gradient.shape)


def vector_update(gradient: Tensor, state: dict[str, Any], options: dict[str, Any]) -> Tensor:
    """Returns what a learning rate of 1 subtracts from a vector; moves `state` on."""
    if not state:
        state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
    state["step"] += 1
    (beta1, beta2), count = options["betas"], state["step"]
    mean = state["mean"].lerp_(gradient, 1 - beta1)
    square = state["square"].lerp_(gradient.square(), 1 - beta2)
    return (mean / (1 - beta1**count)) / ((square / (1 - beta2**count)).sqrt() + options["eps"])


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Returns a matrix with the singular vectors of `matrix` and singular values near 1, about 0.7 to 1.2.

    Args:
        matrix: (rows, columns); one of zeros stays so.
        steps: of a Newton-Schulz iteration whose polynomial rises as steeply as can be at 0.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), wide, beta=3.4445)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
