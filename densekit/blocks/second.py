"""Second derivatives of what is run by hand: made again in operations that autograd follows.

What a policy keeps suffices for gradients. Where gradients of these are asked for, the maps are made once more with
concatenation, in the time and memory of `memory="speed"`, and said so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from densekit.blocks.parts import Stage, replayed
from densekit.blocks.synced import group_of
from densekit.errors import ConfigError


class Anchor(torch.autograd.Function):
    """The place of a tensor in the graph, without its memory: (x) -> one number that is as large as `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_empty(()).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@dataclass
class Again:
    """A function to be differentiated twice.

    Attributes:
        make: returns what it makes of its inputs, with the parameters.
        inputs: what it read.
        places: for each input a tensor of its shape with its place in the graph, perhaps itself.
        parameters: that `make` uses.
    """

    make: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    inputs: Sequence[Tensor]
    places: Sequence[Tensor]
    parameters: Sequence[Tensor]

    def gradients(self, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Returns the gradients of inputs and parameters, which have a gradient, from those of what is made."""
        found: tuple[Tensor | None, ...] = Gradients.apply(self, len(grads), *grads, *self.places, *self.parameters)
        return found


class Gradients(torch.autograd.Function):
    """(function, number of results, their gradients, places, parameters) -> gradients of the last two.

    What is made again has a graph of its own, which begins with the inputs: in that which these came from, gradients of
    one input would go on to another, and to parameters that are used there as well.
    """

    @staticmethod
    def forward(ctx: Any, again: Again, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        with torch.enable_grad():
            grads = [None if grad is None else grad.detach().requires_grad_() for grad in tensors[:count]]
            pairs = zip(again.inputs, again.places, strict=True)
            inputs = [x.detach().requires_grad_(place.requires_grad) for x, place in pairs]
            learned = [*inputs, *again.parameters]
            found = _gradients(again.make(inputs), learned, grads, create_graph=True)
        ctx.found, ctx.read = found, [*grads, *learned]
        return tuple(None if grad is None else grad.detach() for grad in found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *_gradients(ctx.found, ctx.read, grads, retain_graph=True)


def _gradients(
    made: Sequence[Tensor | None], read: Sequence[Tensor | None], grads: Sequence[Tensor | None], **options: bool
) -> list[Tensor | None]:
    """Returns the gradient of each tensor that was read, from those of what was made; None where there is none."""
    outputs, given = [], []
    for y, grad in zip(made, grads, strict=True):
        if y is not None and y.requires_grad and grad is not None:
            outputs.append(y)
            given.append(grad)
    wanted = [x for x in read if x is not None and x.requires_grad]
    if not outputs or not wanted:
        return [None] * len(read)
    found = iter(torch.autograd.grad(outputs, wanted, given, allow_unused=True, **options))
    return [next(found) if x is not None and x.requires_grad else None for x in read]


def is_second_asked_for() -> bool:
    """Says within a backward pass whether its result is to be differentiated as well, and warns of what that takes."""
    if torch.is_grad_enabled():
        warnings.warn(
            "a second derivative of a network that keeps little for it: its maps are made again, in the time and "
            "memory of memory='speed' (densekit.blocks.set_memory)",
            stacklevel=2,
        )
    return torch.is_grad_enabled()


def rectified(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Returns relu(norm(x)) and leaves running statistics as they are.

    Raises:
        ConfigError: processes share the norm's batch statistics.
    """
    if group_of(norm) is not None:
        raise ConfigError(
            "a second derivative through batch norms that are synchronized between processes: not supported; freeze "
            "the norms or leave them out of step (train.sync_norm)"
        )
    running = (None, None) if norm.training else (norm.running_mean, norm.running_var)
    return F.relu(F.batch_norm(x, *running, norm.weight, norm.bias, norm.training, 0.0, norm.eps))


def concatenated(
    inputs: Sequence[Tensor],
    layers: Sequence[Sequence[Stage]],
    states: Sequence[Sequence[Tensor | None]],
    conv: Callable[[Stage, Tensor], Tensor],
    *,
    only_new: bool,
) -> Tensor:
    """Returns what a dense block makes of its inputs.

    Args:
        inputs: of the block.
        layers: the stages of each.
        states: for each stage the random state of its dropout.
        conv: makes a stage's convolution of what it reads.
        only_new: whether the result is the layers' maps alone.
    """
    features = list(inputs)
    for stages, drawn in zip(layers, states, strict=True):
        x = torch.cat(features, dim=1)
        for stage, state in zip(stages, drawn, strict=True):
            x = conv(stage, x if stage.norm is None else rectified(stage.norm, x))
            if stage.slope is not None:
                x = F.leaky_relu(x, stage.slope)
            if state is not None:
                with replayed(state, x.device):
                    x = x * F.dropout(torch.ones_like(x), stage.drop_rate)
        features.append(x)
    return torch.cat(features[len(inputs) :] if only_new else features, dim=1)
