"""Dense connectivity: every layer sees all earlier maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from densekit.blocks.engine import Plan, SharedBuffer
from densekit.blocks.memory import check_memory
from densekit.blocks.parts import Stage, common_eps, has_hooks


class DenseBlock(nn.Module):
    """Concatenates the input and the outputs of `num_layers` layers, each fed with everything before it.

    Children are named `denselayer1` .. `denselayerL`, which makes torchvision's DenseNet keys load as they are.

    Args:
        in_channels: c0, channels of the block's input.
        num_layers: L.
        growth_rate: k, channels each layer adds.
        make_layer: `make_layer(channels)` returns a module (B, channels, H, W) -> (B, growth_rate, H, W).
        memory: how training memory is spent, one of `MEMORY_POLICIES`.

    Shapes: (B, c0, H, W) -> (B, c0 + L k, H, W), the input's channels first, then each layer's in order.

    Source: Huang et al., Densely Connected Convolutional Networks (CVPR 2017), section 3.
    """

    def __init__(
        self,
        in_channels: int,
        num_layers: int,
        growth_rate: int,
        make_layer: Callable[[int], nn.Module],
        *,
        memory: str = "speed",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = in_channels + num_layers * growth_rate
        self.growth_rate = growth_rate
        self.memory = check_memory(memory)
        for i in range(num_layers):
            self.add_module(f"denselayer{i + 1}", make_layer(in_channels + i * growth_rate))

    def forward(self, x: Tensor) -> Tensor:
        plan = self._plan(x)
        if plan is not None:
            output: Tensor = SharedBuffer.apply(x, plan, *self.parameters())
            return output
        features = [x]
        for layer in self.children():
            # One concatenation of the list costs less than growing a tensor layer by layer.
            features.append(layer(torch.cat(features, dim=1) if len(features) > 1 else x))
        return torch.cat(features, dim=1)

    def _plan(self, x: Tensor) -> Plan | None:
        """Returns how the engine runs this block, or None where concatenation does: nothing to learn, export, hooks."""
        if self.memory == "speed" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        if not (x.requires_grad or any(parameter.requires_grad for parameter in self.parameters())):
            return None
        layers: list[list[Stage]] = [getattr(layer, "stages", list)() for layer in self.children()]
        if not all(layers) or any(map(has_hooks, self.children())):
            return None
        if not all(stage.is_known for stages in layers for stage in stages):
            return None
        try:
            eps = common_eps(layers)
        except ValueError:
            return None
        kind = x.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return Plan(layers, self.in_channels, self.growth_rate, eps, keep=self.memory == "balanced", autocast=autocast)


def set_memory(module: nn.Module, memory: str) -> None:
    """Gives every dense block inside `module` the policy `memory`.

    Raises:
        ConfigError: no such policy.
    """
    check_memory(memory)
    for child in module.modules():
        if isinstance(child, DenseBlock):
            child.memory = memory
