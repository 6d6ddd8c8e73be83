"""How strongly a loss reaches each layer of a network: the norms of its gradients."""

from __future__ import annotations

import copy
import math
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from densekit.encoders.opening import seeded
from densekit.errors import ConfigError
from densekit.files import printable

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class LayerGradient:
    """The gradient at a layer's weights.

    Attributes:
        name: of the convolution or linear layer.
        norm: L2 norm of the gradient.
        weights: their number.
    """

    name: str
    norm: float
    weights: int


def gradient_norms(net: nn.Module, x: Tensor, *, seed: int = 0) -> list[LayerGradient]:
    """Returns the gradients of a loss at the weights of each convolution and linear layer, in the order they run in.

    The loss is a random direction of the output, sum(y r) / sqrt(numel(y)) with r from a normal distribution: it asks
    for no labels, and favours no output. The network is in training, so that norms take the statistics of the batch.

    Args:
        net: stays as it is.
        x: (B, C, H, W), at least two pictures, since norms ask for that.
        seed: of the direction, and of dropout.

    Raises:
        ConfigError: pictures that are too small, a gradient that is not finite, or no such layers.
    """
    net = copy.deepcopy(net).train().requires_grad_(True)
    ran: dict[str, nn.Module] = {}
    for name, module in net.named_modules():
        if isinstance(module, LAYERS):
            module.register_forward_hook(partial(_note, ran, name))
    with seeded(seed):
        try:
            output = net(x)
        except (RuntimeError, ValueError) as error:  # too little is left of the pictures for a kernel or a norm
            size = "x".join(map(str, x.shape))
            raise ConfigError(
                f"the network cannot train on a batch of {size}: {printable(error)}; use --size"
            ) from error
        outputs = [output] if isinstance(output, Tensor) else list(output)
        total = sum(y.numel() for y in outputs)
        loss = torch.stack([(y * torch.randn(y.shape).to(y)).sum() for y in outputs]).sum() / total**0.5
    loss.backward()
    found = []
    for name, module in ran.items():
        gradient = module.weight.grad
        if not isinstance(gradient, Tensor):
            continue  # what runs without being used, as the last layer of an encoder may
        norm = float(gradient.double().norm())
        if not math.isfinite(norm):
            raise ConfigError(f"{name}: its gradient is not finite, so there is nothing to compare; use other weights")
        found.append(LayerGradient(name, norm, gradient.numel()))
    if not found:
        raise ConfigError("the network has no convolutions or linear layers here, so no gradients to show")
    return found


def early_share(norms: list[LayerGradient]) -> float:
    """Returns the median norm of the first quarter of the layers by that of the last; NaN where no layer gets any.

    Layers without a gradient are left out: those behind a factor that starts at zero, as in many residual networks.
    """
    found = [layer.norm for layer in norms if layer.norm > 0]
    count = max(1, len(found) // 4)
    return statistics.median(found[:count]) / statistics.median(found[-count:]) if found else math.nan


def _note(ran: dict[str, nn.Module], name: str, module: nn.Module, *_: Any) -> None:
    """Notes that a layer has run; returns nothing, since a hook's result would replace the layer's."""
    ran.setdefault(name, module)
