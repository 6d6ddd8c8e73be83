"""Optimizers, the learning rate as a function of the step, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from densekit.config import OptimConfig
from densekit.train.muon import Muon


def create_optimizer(net: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Returns the optimizer a config names, over all parameters of `net`."""
    rate, decay = config.learning_rate, config.weight_decay
    make: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adam": lambda: torch.optim.Adam(net.parameters(), rate, weight_decay=decay),
        "adamw": lambda: torch.optim.AdamW(net.parameters(), rate, weight_decay=decay),
        "muon": lambda: Muon(net.parameters(), rate, weight_decay=decay),
        "sgd": lambda: torch.optim.SGD(net.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=decay),
        "rmsprop": lambda: torch.optim.RMSprop(net.parameters(), rate, weight_decay=decay),
    }
    return make[config.name]()


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Returns the learning rate of step 0..total_steps-1.

    "constant" and "cosine" follow a linear warm-up. "onecycle" rises along a cosine from 1/25 of the highest rate,
    over the warm-up or without one over 30 % of the steps, and falls along another to the lowest.

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
