"""From a network as it is trained to one that predicts."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from itertools import chain
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from densekit.blocks.dense import DenseBlock
from densekit.blocks.inference.buffered import BufferedBlock, Rectified, planned_layer
from densekit.blocks.inference.convs import NarrowConv, PlannedConv, is_narrow
from densekit.blocks.inference.planned import AnyModule, Planned, affine, is_affine, per_map
from densekit.blocks.inference.split import SplitBlock, SplitResidual, can_split
from densekit.blocks.layers import ConvLayer, Transition
from densekit.blocks.residual import ResidualDenseBlock
from densekit.errors import CheckpointError


def optimize(net: AnyModule) -> AnyModule:
    """Returns a network that gives what `net` gives in evaluation, to 1e-5 of the largest value, in less time.

    Batch norms are folded into convolutions or become one pass with their ReLU, average pools precede the 1x1
    convolutions of transitions, dense blocks write into one buffer or add their parts up, maps are stored channels
    last, and on CPUs convolutions run as oneDNN's fused operators or, where matrix products are fast, those of few
    pixels as products and those that read and make many maps by 3x3 by Winograd's algorithm, whose weights take four
    times the memory of the others. Nothing is compiled; what runs is chosen at the first maps of a size.

    Args:
        net: of densekit, or any that contains its blocks; it stays as it is. On the device where it will run. One that
            is for prediction as a whole, a `Planned`, is the result itself.

    The result has the same interface, is for that device and for prediction alone (`train()` raises ConfigError), and
    does not follow later changes of the weights. It can be cast by `to(dtype)`.

    Raises:
        CheckpointError: a weight is not finite.
    """
    if isinstance(net, Planned):
        return net
    for name, tensor in chain(net.named_parameters(), net.named_buffers()):
        # Its fused operators can make a number of NaN, which would hide the fault.
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            raise CheckpointError(f"{name} holds values that are not finite; use another checkpoint")
    ready = cast(AnyModule, planned(net)).eval().requires_grad_(False)
    return ready.to(memory_format=torch.channels_last)


def planned(module: nn.Module) -> nn.Module:
    """Returns the planned form of a module: its own, or itself with those of its children."""
    make = PLANS.get(type(module))
    found = None if make is None else make(module)
    return rebuilt(module) if found is None else found


def rebuilt(module: nn.Module) -> nn.Module:
    """Returns a module with the planned forms of its children; parameters share their memory."""
    result = copy.copy(module)
    result._parameters = {
        name: None if parameter is None else nn.Parameter(parameter.detach(), requires_grad=False)
        for name, parameter in module._parameters.items()
    }
    result._buffers = dict(module._buffers)
    result._modules = dict(module._modules)
    result._load_state_dict_pre_hooks = OrderedDict()  # they hold the other module, and nothing is loaded into this one
    if isinstance(module, nn.Sequential):
        fold(result)
    result._modules = {
        name: None if child is None else child if isinstance(child, Planned) else planned(child)
        for name, child in result._modules.items()
    }
    return result


def fold(sequence: nn.Module) -> None:
    """Puts each convolution of a sequence, the batch norm behind it and a ReLU behind that into the convolution."""
    names = list(sequence._modules)
    children = [sequence._modules[name] for name in names]
    for i, conv in enumerate(children):
        norm, act = (children[j] if j < len(children) else None for j in (i + 1, i + 2))
        if not (is_plain_conv(conv) and is_affine(norm)):
            continue
        is_rectified = type(act) is nn.ReLU
        sequence._modules[names[i]] = PlannedConv.of(conv, norm=norm, slope=0.0 if is_rectified else None)
        for j in range(i + 1, i + 2 + is_rectified):
            sequence._modules[names[j]] = nn.Identity()


def is_plain_conv(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Says whether `PlannedConv` runs a module as it is."""
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)


class PlannedTransition(Transition, Planned):
    """A transition for prediction; an average pool precedes the convolution, which commutes with it."""

    factor: Tensor
    shift: Tensor

    def __init__(self, transition: Transition) -> None:
        Planned.__init__(self)
        norm, conv = transition.norm, transition.conv
        factor, shift = affine(norm)
        self.register_buffer("factor", per_map(factor, conv.weight))
        self.register_buffer("shift", per_map(shift, conv.weight))
        self.conv: PlannedConv = PlannedConv.of(conv)  # type: ignore[assignment]
        self.rectified: Rectified = Rectified(norm, conv)
        self.reader: PlannedConv = self.rectified.reader(conv)
        self.pool: nn.Module = transition.pool
        self.is_pooled_first: bool = isinstance(transition.pool, nn.AvgPool2d)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(self.rectified(x), self.reader)

    def both(self, x: Tensor, *, is_tapped: bool = True) -> tuple[Tensor, Tensor]:
        """Returns the block's output after norm and ReLU, and the transition's; there is nothing to make again."""
        x = self.activate(x)
        return x, self.reduce(x)

    def activate(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.factor).relu_()

    def reduce(self, x: Tensor, conv: nn.Module | None = None) -> Tensor:
        conv = self.conv if conv is None else conv
        return conv(self.pool(x)) if self.is_pooled_first else self.pool(conv(x))


def plan_conv(conv: nn.Conv2d) -> nn.Module | None:
    """Returns the planned convolution, None for a kind that `PlannedConv` does not run."""
    if not is_plain_conv(conv):
        return None
    return NarrowConv(conv) if on_cpu(conv) and is_narrow(conv) else PlannedConv.of(conv)


def plan_conv_layer(layer: ConvLayer) -> nn.Module | None:
    """Returns convolution and activation as one, None for an activation that is not known."""
    stages = layer.stages()
    return PlannedConv.of(layer.conv, slope=stages[0].slope) if stages else None


def plan_block(block: DenseBlock) -> nn.Module | None:
    """Returns the planned block, None where its layers are of another kind."""
    layers = [planned_layer(layer) for layer in block.children()]
    if all(layers):
        return BufferedBlock(block, [layer for layer in layers if layer is not None])
    return SplitBlock(block) if on_cpu(block) and can_split(block) else None


def plan_residual(block: ResidualDenseBlock) -> nn.Module | None:
    """Returns the planned block, None where its layers are of another kind, or on a GPU."""
    return SplitResidual(block) if on_cpu(block) and can_split(block.dense) else None


def plan_transition(transition: Transition) -> nn.Module | None:
    """Returns the planned transition, None for a norm of another kind."""
    return PlannedTransition(transition) if is_affine(transition.norm) else None


def on_cpu(part: nn.Module) -> bool:
    """Says whether a part is on the CPU: elsewhere every part of a sum would be read and written once more."""
    return next(part.parameters()).device.type == "cpu"


PLANS: dict[type[nn.Module], Callable[..., nn.Module | None]] = {
    nn.Conv2d: plan_conv,
    ConvLayer: plan_conv_layer,
    DenseBlock: plan_block,
    ResidualDenseBlock: plan_residual,
    Transition: plan_transition,
}
