"""Optimizers, the learning rate as a function of the step, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel

from densekit.config import OptimConfig
from densekit.errors import ConfigError
from densekit.files import printable
from densekit.train.muon import Muon


def create_optimizer(net: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Returns the optimizer a config names, over the parameters of `net` that it does not freeze.

    Each of its groups has a "factor", by which the learning rate of a step is multiplied there.

    Raises:
        ConfigError: a pattern of `optim.rates` that fits no parameter, or every parameter frozen.
    """
    rate, decay, groups = config.learning_rate, config.weight_decay, grouped(net, config.rates)
    eps, betas = config.eps or 1e-8, config.betas or [0.9, 0.999]
    adam: dict[str, Any] = {"betas": tuple(betas), "eps": eps, "weight_decay": decay}
    make: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adam": lambda: torch.optim.Adam(groups, rate, **adam),
        "adamw": lambda: torch.optim.AdamW(groups, rate, **adam),
        "muon": lambda: Muon(groups, rate, weight_decay=decay),
        "sgd": lambda: torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True, weight_decay=decay),
        "rmsprop": lambda: torch.optim.RMSprop(
            groups, rate, alpha=config.betas[0] if config.betas else 0.99, eps=eps, weight_decay=decay
        ),
    }
    return make[config.name]()


def grouped(net: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Returns the parameters of `net` by the factor of their learning rate, and freezes those whose factor is 0.

    Raises:
        ConfigError: a pattern that fits no parameter, or every parameter frozen.
    """
    groups: dict[float, list[Tensor]] = {}
    unused = dict.fromkeys(rates)
    for name, parameter in net.named_parameters():
        fitting = [pattern for pattern in rates if fnmatchcase(name, pattern)]
        for pattern in fitting:
            unused.pop(pattern, None)
        factor = rates[fitting[0]] if fitting else 1.0
        parameter.requires_grad_(factor > 0)
        if factor > 0:
            groups.setdefault(factor, []).append(parameter)
    if unused:
        names = [name for name, _ in net.named_parameters()]
        raise ConfigError(
            f"optim.rates: {printable(next(iter(unused)))!r} fits no parameter; their names go from {names[0]} to "
            f"{names[-1]}"
        )
    if not groups:
        raise ConfigError("optim.rates: freezes every parameter; leave some to be trained")
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group the learning rate of a step, times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def clip_gradients(
    net: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, largest: float | None
) -> Tensor:
    """Returns the norm of the gradient of one step, not scaled, and shortens the gradient to `largest`."""
    scaler.unscale_(optimizer)
    parameters = [parameter for parameter in net.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if largest is not None:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Returns the learning rate of step 0..total_steps-1.

    "constant", "cosine" and "step" follow a linear warm-up; "step" counts from the first step. "onecycle" rises along
    a cosine from 1/25 of the highest rate, over the warm-up or without one over 30 % of the steps, and falls along
    another to the lowest.

    Source: Smith and Topin, Super-Convergence (2019), with the constants of torch's OneCycleLR.
    """
    highest, lowest, warmup = config.learning_rate, config.min_learning_rate, config.warmup_steps
    if config.schedule == "onecycle":
        top = (warmup or 0.3 * total_steps) - 1
        if step <= top:
            return cosine(highest / 25, highest, step / max(top, 1))
        return cosine(highest, lowest, (step - top) / (total_steps - 1 - top))
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return highest
    if config.schedule == "step":
        return max(lowest, float(highest * config.step_factor ** (step // config.step_every)))
    return cosine(highest, lowest, (step - warmup) / max(total_steps - warmup, 1))


def cosine(start: float, end: float, share: float) -> float:
    """Returns the point at `share`, 0..1, of half a cosine wave from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def create_average(net: nn.Module, decay: float) -> AveragedModel:
    """Returns the exponential moving average of the weights and buffers of `net`.

    Early on the decay is (1 + n) / (10 + n), so that the random start is forgotten within a few dozen steps.
    """

    def average(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        if not mean.is_floating_point():
            return value
        n = float(count)
        return torch.lerp(mean, value, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(net, avg_fn=average, use_buffers=True)
